"""Keeps the leases of a worker alive while it works, and ends a worker that is stuck.

Invariant: a lease is renewed only while its item waits its turn or is within its deadline. A worker
that was stopped as a process renews nothing, so its leases expire and others get the work.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from protos.trajectory import FailureKind
from replay.queue import Lease, QueueClosed, QueueUnavailable, ReplayQueue

logger = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 5.0
"""The longest that a queue may take to hear what a worker gives up; else its leases run out."""


class LeaseKeeper:
    """Renews leases from a thread of its own, and watches the deadline from another.

    When an item takes longer than `deadline` seconds, the keeper fails that item, gives the others
    back untouched and calls `on_stuck(reason)`, which ends the process: a thread that hangs
    cannot be ended otherwise. A queue that is away, which calls to it wait for, delays none of it.

    Attributes:
      deadline: seconds that an item may take.
      on_lost: told the ids of leases that are not held any more, so that work which waits
        elsewhere can be called off. It runs in the keeper's thread.
    """

    def __init__(
        self,
        queue: ReplayQueue,
        ttl: float,
        deadline: float,
        on_stuck: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._queue = queue
        self.deadline = deadline
        self._on_stuck = on_stuck
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, Lease] = {}
        self._working_on: tuple[frozenset[str], float] | None = None
        self.on_lost: Callable[[set[str]], None] = lambda lost: None
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._or_end, args=(loop, every), name=name, daemon=True)
            for name, loop, every in (
                ("lease-keeper", self._renew, ttl / 3),
                ("deadline", self._watch, min(ttl, deadline) / 3),
            )
        ]
        for thread in self._threads:
            thread.start()

    def hold(self, leases: Iterable[Lease]) -> None:
        """From now on these are renewed, until they are dropped."""
        with self._lock:
            self._held.update({lease.id: lease for lease in leases})

    def holds(self, lease: Lease) -> bool:
        """Whether it is still renewed: neither dropped nor lost."""
        with self._lock:
            return lease.id in self._held

    def drop(self, leases: Iterable[Lease]) -> None:
        """These have their outcome."""
        with self._lock:
            for lease in leases:
                self._held.pop(lease.id, None)

    def give_back(self) -> int:
        """Stops renewing, and gives all that is held back untried; returns how many."""
        self.close()
        with self._lock:
            held, self._held = list(self._held), {}
        self._queue.release(held)
        return len(held)

    def hand_back(self, leases: Sequence[Lease]) -> None:
        """Gives these back untried; where the queue does not hear it soon, they run out."""
        held = [lease.id for lease in leases if self.holds(lease)]
        self.drop(leases)
        self._last_words(lambda: self._queue.release(held))

    @contextmanager
    def working_on(self, leases: Iterable[Lease]) -> Iterator[None]:
        """The deadline runs for these leases while the block runs.

        Of none it ends what has nothing to do with any of them: all go back untried.
        """
        with self._lock:
            self._working_on = (frozenset(lease.id for lease in leases), self._clock())
        try:
            yield
        finally:
            with self._lock:
                self._working_on = None

    def close(self) -> None:
        """Stops renewing."""
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def _or_end(self, loop: Callable[[float], None], every: float) -> None:
        try:
            loop(every)
        except Exception as error:
            # Without this thread the leases run out while the work goes on: better end it all.
            logger.exception("the lease keeper failed")
            self._on_stuck(f"could not keep its leases: {type(error).__name__}: {error}")
            raise

    def _renew(self, every: float) -> None:
        while not self._closed.wait(every):
            with self._lock:
                held = dict(self._held)
            if held:
                try:
                    lost = set(held) - set(self._queue.renew(list(held)))
                except (QueueUnavailable, QueueClosed) as error:
                    # An unreachable queue lets the leases expire: the work is redone elsewhere.
                    logger.warning("could not renew %d leases: %s", len(held), error)
                    continue
                if lost:
                    self.drop(held[lease_id] for lease_id in lost)
                    self.on_lost(lost)

    def _watch(self, every: float) -> None:
        while not self._closed.wait(every):
            with self._lock:
                held = dict(self._held)
                working_on = self._working_on
            if working_on is not None and self._clock() - working_on[1] > self.deadline:
                self._closed.set()  # nothing is renewed any more
                self._give_up(held, working_on[0])
                return

    def _give_up(self, held: dict[str, Lease], stuck: frozenset[str]) -> None:
        ordinals = [held[lease_id].ordinal for lease_id in sorted(stuck & set(held))]
        on = f" on ordinals {ordinals}" if stuck else ", at work on no group"
        reason = f"exceeded its deadline of {self.deadline:g} s{on}"

        def tell() -> None:
            if stuck:
                self._queue.fail(
                    [(lease_id, reason, FailureKind.INFRASTRUCTURE) for lease_id in sorted(stuck)]
                )
            self._queue.release([lease_id for lease_id in held if lease_id not in stuck])

        self._last_words(tell)
        self._on_stuck(reason)

    def _last_words(self, tell: Callable[[], None]) -> None:
        def try_to_tell() -> None:
            try:
                tell()
            except Exception:  # whatever it is, the worker goes its way, and the leases run out
                logger.exception("the queue did not hear what this worker gives up: it runs out")

        telling = threading.Thread(target=try_to_tell, name="last-words", daemon=True)
        telling.start()
        telling.join(LAST_WORDS_SECONDS)
