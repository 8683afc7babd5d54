"""Virtual time, processes that can be stopped or killed, and a network that keeps no promise.

Everything that happens is an event in one heap, ordered by (time, number), and every choice comes
from one seeded generator: the same seed gives the same events, to the last one.

A process is a set of generators. They yield seconds to sleep, or a `Call` whose answer they get.
"""

import heapq
import random
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from replay.queue import QueueUnavailable

KEPT_EVENTS = 60
FOREVER = 1e12

Coroutine = Generator[Any, Any, None]


class Died(Exception):
    """What a process raises to end itself, and why."""


class RemoteError(Exception):
    """The server answered with an error."""


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
    """

    latency: float = 0.005
    slow: float = 0.002
    slowest: float = 90.0
    lost: float = 0.001
    doubled: float = 0.002
    timeout: float = 20.0


class Endpoint(Protocol):
    """Something that answers calls."""

    def receive(
        self, method: str, arguments: tuple[Any, ...], reply: Callable[[Any], None]
    ) -> None:
        """Takes a request; `reply` may be called at once, later, or never."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
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
        self.network = network
        self.storm_until = 0.0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.recent: deque[tuple[Any, ...]] = deque(maxlen=KEPT_EVENTS)
        self.hash = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """`action(*arguments)` happens then; of what is due together, what was asked first."""
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, action, arguments))

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """`action(*arguments)` happens in so many seconds."""
        self.at(self.now + seconds, action, *arguments)

    def next_event(self) -> None:
        """Lets the next thing happen."""
        self.now, _, action, arguments = heapq.heappop(self._heap)
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

    def send(self, once: bool, action: Callable[..., None], *arguments: Any) -> None:
        """A message is under way: it arrives once, twice or never; `once`: not twice."""
        network, draw = self.network, self.random.random()
        worse = 20.0 if self.now < self.storm_until else 1.0
        if draw < worse * network.lost:
            self.counts["messages lost"] += 1
            return
        self._deliver(worse, action, arguments)
        if not once and draw > 1.0 - worse * network.doubled:
            self.counts["messages doubled"] += 1
            self._deliver(worse, action, arguments)

    def _deliver(
        self, worse: float, action: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if self.chance(worse * self.network.slow):
            delay = self.random.uniform(0.0, self.network.slowest)
            self.counts["messages slow"] += 1
        else:
            delay = self.random.expovariate(1.0 / (worse * self.network.latency))
        self.after(delay, action, *arguments)


class _Task:
    """A coroutine of one life of a process, and the call it waits for."""

    __slots__ = ("calls", "coroutine", "life", "process")

    def __init__(self, process: "Process", coroutine: Coroutine):
        self.process, self.coroutine = process, coroutine
        self.life = process.life
        self.calls = 0


class Process:
    """A process, over all its lives.

    Attributes:
      name: what the queue knows it by.
      life: counts the starts; what belongs to an earlier life is not heard any more.
      connected: its calls arrive at most once, and not after its death, as an actor's on Ray do.
        Otherwise they may arrive twice, and long after.
      on_death: told the reason when it ends by itself or is killed.
    """

    def __init__(
        self,
        world: World,
        name: str,
        coroutines: Callable[["Process"], list[Coroutine]],
        on_death: Callable[["Process", str], None],
        connected: bool = False,
    ):
        self.world, self.name, self.connected = world, name, connected
        self.life = 0
        self.alive = False
        self.stopped_since = 0.0
        self.resumes_at = 0.0
        # Its own clock's seconds to one of the queue's: only its own timers see it.
        self.clock_rate = 1.0
        self._coroutines = coroutines
        self._on_death = on_death

    def start(self) -> None:
        """Begins a life."""
        if self.alive:
            return
        self.life += 1
        self.alive, self.resumes_at = True, 0.0
        self.clock_rate = self.world.random.uniform(0.7, 1.5)
        for coroutine in self._coroutines(self):
            self.world.after(0.0, self._step, _Task(self, coroutine), None)

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

    @property
    def silent_seconds(self) -> float:
        """How long it has been stopped."""
        now = self.world.now
        return now - self.stopped_since if self.alive and self.resumes_at > now else 0.0

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
            self._call(task, wanted)
        else:
            world.after(wanted, self._step, task, None)

    def _call(self, task: _Task, call: Call) -> None:
        world, connected = self.world, self.connected
        task.calls += 1
        number = task.calls

        def answered(value: Any) -> None:
            if number == task.calls:
                task.calls += 1
                self._step(task, value)

        def arrive() -> None:
            if connected and task.life != self.life:
                return
            call.to.receive(call.method, call.arguments, lambda v: world.send(True, answered, v))

        world.send(connected, arrive)
        error = QueueUnavailable(f"no answer to {call.method}")
        world.after(world.network.timeout + call.wait, answered, error)
