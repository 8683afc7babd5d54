"""Virtual time, processes that can be stopped or killed, and a network that keeps no promise.

Everything that happens is an event in one heap, ordered by (time, number), and every choice comes
from one seeded generator: the same seed gives the same events, to the last one.

A process is a set of generators. They yield seconds to sleep, or a `Call` whose answer they get.
"""

import enum
import random
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import log
from typing import Any, NamedTuple, Protocol

from replay.queue import QueueUnavailable

KEPT_EVENTS = 60
FOREVER = 1e12

Coroutine = Generator[Any, Any, None]


class Died(Exception):
    """What a process raises to end itself, and why."""


class RemoteError(Exception):
    """The server answered with an error."""


class Fenced(RemoteError):
    """The server's answer to a learner whose place was taken."""


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Network:
    """What may happen to a message; each request and each answer is one.

    Attributes:
      latency: mean seconds under way.
      slow, slowest: share of messages that take up to so many seconds: longer than leases and
        timeouts, so that they overtake each other and arrive when nobody waits any more.
      lost, doubled: shares.
      timeout: seconds after which a client gives an answer up.
      patience: seconds for which a client of an edge asks again.
    """

    latency: float = 0.005
    slow: float = 0.002
    slowest: float = 90.0
    lost: float = 0.001
    doubled: float = 0.002
    timeout: float = 20.0
    patience: float = 120.0

    def times(self, factor: float) -> "Network":
        """One whose messages are slow, lost or doubled so many times as often."""
        return replace(
            self,
            slow=factor * self.slow,
            lost=factor * self.lost,
            doubled=factor * self.doubled,
        )


class Request(NamedTuple):
    """What arrives at a server.

    Attributes:
      method, arguments: what is asked.
      sent_at: on the caller's clock, which no server may trust.
      number: caller and number of the call, where its transport repeats calls.
    """

    method: str
    arguments: tuple[Any, ...]
    sent_at: float
    number: tuple[str, int] | None


class Endpoint(Protocol):
    """Something that answers calls.

    Attributes:
      connection: in which numbered calls travel from now on.
    """

    connection: int

    def receive(self, request: Request, reply: Callable[[Any], None], connection: int) -> None:
        """Takes a request of a connection; `reply` may be called at once, later, or never."""
        ...


class Transport(enum.Enum):
    """How a process's calls travel.

    ONCE: at most once, as an actor's on Ray. REPEATED: as through an edge: numbered, and sent
    again until answered. LOOSE: what is slow or lost is given up; any call may arrive twice.
    """

    ONCE = "once"
    REPEATED = "repeated"
    LOOSE = "loose"


_ONCE, _REPEATED, _ = Transport


class Call(NamedTuple):
    """A request that a process waits for; `QueueUnavailable` is raised where no answer comes."""

    to: Endpoint
    method: str
    arguments: tuple[Any, ...]
    wait: float = 0.0


class World:
    """The clock, the events to come and the trace of those that were."""

    def __init__(self, seed: int, network: Network):
        self.now = 0.0
        self.random = random.Random(seed)
        self._draw = self.random.random
        self.network = network
        self.storm_until = 0.0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.recent: deque[tuple[Any, ...]] = deque(maxlen=KEPT_EVENTS)
        self.hash = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pending: dict[float, deque[tuple[float, _Pending]]] = {}
        self._number = 0
        self._serials = 0

    def next_serial(self) -> int:
        """Tells processes of one name apart."""
        self._serials += 1
        return self._serials

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """`action(*arguments)` happens then; of what is due together, what was asked first."""
        self._number += 1
        heappush(self._heap, (time, self._number, action, arguments))

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """`action(*arguments)` happens in so many seconds."""
        self._number += 1
        heappush(self._heap, (self.now + seconds, self._number, action, arguments))

    def give_up_after(self, seconds: float, call: "_Pending") -> None:
        """`call.give_up()` happens in so many seconds, where it waits until then.

        Most calls are answered long before: those of the same patience wait in a row, and only the
        first of it is an event to come.
        """
        row = self._pending.get(seconds)
        if row is None:
            row = self._pending[seconds] = deque()
        row.append((self.now + seconds, call))
        if len(row) == 1:
            self.at(row[0][0], self._give_up_first, row)

    def _give_up_first(self, row: "deque[tuple[float, _Pending]]") -> None:
        _, first = row.popleft()
        while row and not row[0][1].waits:
            row.popleft()
        if row:
            self.at(row[0][0], self._give_up_first, row)
        if first.waits:
            first.give_up()

    def next_event(self) -> None:
        """Lets the next thing happen."""
        self.now, _, action, arguments = heappop(self._heap)
        self.events += 1
        action(*arguments)

    def trace(self, *what: Any) -> None:
        """Remembers what happened, for the hash of all and the list of the last."""
        entry = (self.now, *what)
        self.recent.append(entry)
        self.hash = zlib.crc32(repr(entry).encode(), self.hash)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def send(
        self, once: bool, cut_until: float, action: Callable[..., None], *arguments: Any
    ) -> None:
        """A message is under way: it arrives once, twice or never.

        Args:
          once: not twice.
          cut_until: until then one side is cut off: it is lost, or arrives after that.
          action: what happens when it arrives, with the arguments.
          arguments: of the action.
        """
        network, draw = self.network, self._draw()
        worse = 20.0 if self.now < self.storm_until else 1.0
        lost, leaves = worse * network.lost, self.now
        if cut_until > leaves:
            self.counts["messages at a cut"] += 1
            lost, leaves = max(lost, 0.5), cut_until
        if draw < lost:
            self.counts["messages lost"] += 1
            return
        self._deliver(worse, leaves, action, arguments)
        if draw > 1.0 - worse * network.doubled and not once:
            self.counts["messages doubled"] += 1
            self._deliver(worse, leaves, action, arguments)

    def _deliver(
        self,
        worse: float,
        leaves: float,
        action: Callable[..., None],
        arguments: tuple[Any, ...],
    ) -> None:
        network, draw = self.network, self._draw
        if draw() < worse * network.slow:
            delay = draw() * network.slowest
            self.counts["messages slow"] += 1
        else:  # `random.expovariate`, which costs as much as all the rest of this
            delay = -log(1.0 - draw()) * worse * network.latency
        self._number += 1
        heappush(self._heap, (leaves + delay, self._number, action, arguments))


class _Task:
    """A coroutine of one life of a process, and the call it waits for."""

    __slots__ = ("calls", "coroutine", "life", "name", "process")

    def __init__(self, process: "Process", coroutine: Coroutine, name: str):
        self.process, self.coroutine, self.name = process, coroutine, name
        self.life = process.life
        self.calls = 0


class Process:
    """A process, over all its lives.

    Attributes:
      name: what the queue knows it by. Two of one name may live at once, where one has taken the
        place of another that does not know it.
      life: counts the starts; what belongs to an earlier life is not heard any more.
      transport: how its calls travel. They may arrive after its death, whatever it is.
      on_death: told the reason when it ends by itself or is killed.
      cut_until: until then nothing that it says or is told arrives.
    """

    def __init__(
        self,
        world: World,
        name: str,
        coroutines: Callable[["Process"], list[Coroutine]],
        on_death: Callable[["Process", str], None],
        transport: Transport = Transport.LOOSE,
    ):
        self.world, self.name, self.transport = world, name, transport
        self.serial = world.next_serial()
        self.life = 0
        self.alive = False
        self.stopped_since = self.cut_since = 0.0
        self.resumes_at = self.cut_until = 0.0
        # Its own clock's seconds to one of the world's, and what it shows.
        self.clock_rate, self._clock_shows, self._clock_since = 1.0, 0.0, 0.0
        self._coroutines = coroutines
        self._on_death = on_death

    def start(self) -> None:
        """Begins a life, perhaps on another machine."""
        if self.alive:
            return
        self.life += 1
        self.alive, self.resumes_at, self.cut_until = True, 0.0, 0.0
        self.set_clock(self.world.random.uniform(0.7, 1.5), self.world.random.uniform(-1e4, 1e4))
        for index, coroutine in enumerate(self._coroutines(self)):
            name = f"{self.name}.{self.serial}.{self.life}.{index}"
            self.world.after(0.0, self._step, _Task(self, coroutine, name), None)

    def kill(self, reason: str) -> None:
        """SIGKILL: what it has sent is under way, the rest is gone."""
        if self.alive:
            self.alive = False
            self.life += 1
            self.world.trace("death", self.name, reason)
            self._on_death(self, reason)

    def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds: it neither hears nor renews anything."""
        if self.resumes_at <= self.world.now:
            self.stopped_since = self.world.now
        self.resumes_at = max(self.resumes_at, self.world.now + seconds)

    def cut_off(self, seconds: float) -> None:
        """It works on, and nobody hears it for so many seconds."""
        if self.cut_until <= self.world.now:
            self.cut_since = self.world.now
        self.cut_until = max(self.cut_until, self.world.now + seconds)

    def set_clock(self, rate: float, shift: float = 0.0) -> None:
        """From now on its clock runs at this rate, after a step of so many seconds."""
        self._clock_shows, self._clock_since = self.clock() + shift, self.world.now
        self.clock_rate = rate

    def clock(self) -> float:
        """What its clock shows."""
        return self._clock_shows + self.clock_rate * (self.world.now - self._clock_since)

    @property
    def silent_seconds(self) -> float:
        """How long it has been stopped or cut off."""
        since = now = self.world.now
        if self.resumes_at > now:
            since = self.stopped_since
        if self.cut_until > now:
            since = min(since, self.cut_since)
        return now - since if self.alive else 0.0

    def _step(self, task: _Task, value: Any) -> None:
        """Runs a coroutine to its next wait."""
        if task.life != self.life:
            return
        world = self.world
        if self.resumes_at > world.now:
            world.at(self.resumes_at, self._step, task, value)
            return
        try:
            if isinstance(value, Exception):
                wanted = task.coroutine.throw(value)
            else:
                wanted = task.coroutine.send(value)
        except StopIteration:
            return
        except (Died, QueueUnavailable, RemoteError) as error:
            self.kill(f"{type(error).__name__}: {error}")
            return
        if isinstance(wanted, Call):
            task.calls += 1
            _Pending(self, task, wanted).ask()
        else:
            world.after(wanted, self._step, task, None)


class _Pending:
    """A call that a task waits for; an object, since closures would be cycles for the collector."""

    __slots__ = ("began", "call", "number", "process", "request", "task")

    def __init__(self, process: Process, task: _Task, call: Call):
        self.process, self.task, self.call = process, task, call
        self.number, self.began = task.calls, process.world.now
        repeats = process.transport is _REPEATED
        number = (task.name, self.number) if repeats else None
        self.request = Request(call.method, call.arguments, process.clock(), number)

    def ask(self) -> None:
        """Sends it, perhaps again."""
        process, world, call = self.process, self.process.world, self.call
        once = process.transport is _ONCE
        world.send(once, process.cut_until, self._arrive, call.to.connection)
        world.give_up_after(world.network.timeout + call.wait, self)

    def _arrive(self, connection: int) -> None:
        self.call.to.receive(self.request, self._reply, connection)

    def _reply(self, value: Any) -> None:
        process = self.process
        process.world.send(True, process.cut_until, self._answered, value)

    def _answered(self, value: Any) -> None:
        if self.waits:
            self.task.calls += 1
            self.process._step(self.task, value)

    def give_up(self) -> None:
        """No answer has come in time: it is sent again, or `QueueUnavailable` is the answer."""
        world = self.process.world
        patient = world.now - self.began < world.network.patience
        if self.request.number is not None and patient:
            self.ask()
        else:
            self._answered(QueueUnavailable(f"no answer to {self.call.method}"))

    @property
    def waits(self) -> bool:
        """Its task is alive and has no answer."""
        return self.number == self.task.calls and self.task.life == self.process.life
