"""Groups whose reward is computed elsewhere, on their way.

Invariant: a group that was added is handed to `finish` once, when its answer is there, or is given
back by `close`. One that was abandoned is handed over too, its outcomes cancelled.

A worker neither waits for an answer nor keeps a thread for each: one thread finishes whatever has
been answered. So groups that wait for a person for hours cost no processor and hold up nobody.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field

from protos.trajectory import Outcome, Sampled
from replay.queue import Lease


@dataclass(frozen=True, eq=False)
class Answer:
    """A leased group and the outcomes that it has or will have.

    Attributes:
      seconds: what they cost in this process, by part; complete when `outcomes` is done.
    """

    lease: Lease
    sampled: Sampled
    outcomes: Future[tuple[Outcome, ...]]
    seconds: Mapping[str, float] = field(default_factory=dict)


class InFlight:
    """At most `limit` unanswered groups; `finish(answers)` runs in a thread of its own."""

    def __init__(self, limit: int, finish: Callable[[Sequence[Answer]], None]):
        self._limit = limit
        self._finish = finish
        self._waiting: dict[str, Answer] = {}
        self._answered: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._finish_forever, name="in-flight", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, answer: Answer) -> None:
        """From now on it waits for its outcomes."""
        with self._room:
            self._waiting[answer.lease.id] = answer
        answer.outcomes.add_done_callback(lambda _: self._answered.put(answer))

    def abandon(self, lease_ids: Set[str]) -> None:
        """Calls off what is not wanted any more: nobody shall be asked for it."""
        with self._room:
            unwanted = [self._waiting[id_] for id_ in lease_ids if id_ in self._waiting]
        for answer in unwanted:  # its done callbacks run here
            answer.outcomes.cancel()

    def wait_for_room(self, seconds: float) -> int:
        """How many more groups may be added; waits a while for the first.

        Raises:
          Exception: what `finish` raised. Its groups have no outcome; their leases run out.
        """
        with self._room:
            self._room.wait_for(
                lambda: self._error is not None or len(self._waiting) < self._limit, seconds
            )
            if self._error is not None:
                raise self._error
            return max(0, self._limit - len(self._waiting))

    def close(self) -> list[Lease]:
        """Ends the thread, and calls off what has not been finished; returns its leases."""
        self._closed = True
        self._answered.put(None)
        self._thread.join()
        for answer in self._waiting.values():
            answer.outcomes.cancel()
        return [answer.lease for answer in self._waiting.values()]

    def _finish_forever(self) -> None:
        while (first := self._answered.get()) is not None and not self._closed:
            answers = [first]
            while not self._answered.empty():  # this thread alone takes from it
                more = self._answered.get()
                if more is None:
                    self._answered.put(None)
                    break
                answers.append(more)
            try:
                self._finish(answers)
            except BaseException as error:  # noqa: BLE001  # raised again in the worker's thread
                with self._room:
                    self._error = error
                    self._room.notify_all()
                return
            with self._room:
                for answer in answers:
                    del self._waiting[answer.lease.id]
                self._room.notify_all()
