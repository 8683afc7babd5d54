"""What the services of a simulated run have in common, and the weight store's account."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.simulation.world import Fenced, RemoteError, Request, World
from replay.fence import fenced, is_earlier
from replay.queue import LearnerFenced

Reply = Callable[[Any], None]


@dataclass(slots=True)
class _Answer:
    """To a numbered call, which may still be at work; who waits for it."""

    number: int
    waiting: list[Reply] = field(default_factory=list)
    value: Any = None
    done: bool = False

    def give(self, value: Any) -> None:
        self.value, self.done = value, True
        for reply in self.waiting:
            reply(value)


class Server:
    """Answers calls one after the other, while it is neither stopped nor down.

    Attributes:
      connection: the newest of its edge's processes, of which each knows the calls that it had.
      asked_at: the clock of the caller that is being answered.
    """

    def __init__(self, world: World):
        self.world = world
        self.resumes_at = 0.0
        self.down_until = 0.0
        self.connection = 0
        self.asked_at = 0.0
        self._answers: dict[int, dict[str, _Answer]] = {0: {}}

    def lose_connections(self) -> None:
        """Its edge is started anew: what was under way to it is lost."""
        self._answers.clear()
        self.add_edge()

    def add_edge(self) -> None:
        """Another edge is started beside the one that was stopped, or cut off, and may live on."""
        self.connection += 1
        self._answers[self.connection] = {}

    def receive(self, request: Request, reply: Reply, connection: int) -> None:
        """See `Endpoint`; what arrives while it is down is lost."""
        now = self.world.now
        if request.number is not None and connection not in self._answers:
            return
        if now < self.down_until:
            return
        if now < self.resumes_at:
            self.world.at(self.resumes_at, self.receive, request, reply, connection)
            return
        self.asked_at = request.sent_at
        if request.number is None:
            self.answer(request, reply)
        else:
            self._answer_once(request, *request.number, reply, self._answers[connection])

    def _answer_once(
        self,
        request: Request,
        caller: str,
        number: int,
        reply: Reply,
        answers: dict[str, _Answer],
    ) -> None:
        """As `replay.answers.Answers`: a repeated call has its effect once in one edge."""
        last = answers.get(caller)
        if last is not None and number < last.number:
            return  # refused; its caller has gone on
        if last is not None and number == last.number:
            self.world.counts["calls repeated"] += 1
            if last.done:
                reply(last.value)
            else:
                last.waiting.append(reply)
            return
        answer = answers[caller] = _Answer(number, [reply])
        self.answer(request, answer.give)

    def answer(self, request: Request, reply: Reply) -> None:
        """Answers at once, by the method of that name."""
        try:
            value = getattr(self, request.method)(*request.arguments)
        except (ValueError, LearnerFenced) as error:
            value = self.refused(request.method, error)
        reply(value)

    def refused(self, method: str, error: Exception) -> RemoteError:
        """What a caller is told whose call had no effect."""
        self.world.trace("refused", method, str(error))
        if isinstance(error, LearnerFenced):
            self.world.counts["calls fenced"] += 1
            return Fenced(str(error))
        return RemoteError(str(error))


class SimulatedWeights(Server):
    """Which versions of the policy there are; as `learner.weight_store.WeightStore`."""

    def __init__(self, world: World, keep: int):
        super().__init__(world)
        self._keep = keep
        self.begin()

    def begin(self) -> None:
        """A new process, which holds nothing."""
        self._versions: list[int] = []
        self._epoch: str | None = None
        self._published: int | None = None

    def fence(self, epoch: str) -> None:
        """A learner takes over."""
        if self._epoch is not None and is_earlier(epoch, self._epoch):
            raise fenced(epoch)
        if epoch != self._epoch:
            self._epoch, self._published = epoch, None

    def publish(self, version: int, epoch: str) -> None:
        """Takes a version over; a learner that went back makes the later ones anew."""
        if epoch != self._epoch:
            raise fenced(epoch)
        if self._published is not None and version <= self._published:
            return  # sent again
        self._published = version
        held: Sequence[int] = [held for held in self._versions if held < version]
        self._versions = [*held, version][-self._keep :]
        self.world.trace("publish", version)

    def get(self, version: int | None) -> int:
        """A version, None for the newest; `ValueError` where it is not held."""
        if self._versions and version is None:
            return self._versions[-1]
        if version is None or version not in self._versions:
            raise ValueError(f"weights version {version} is not held; there are {self._versions}")
        return version
