"""What the queue's rules (`replay.state`) keep of the groups that are out."""

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from replay.queue import Frontier, Quarantined, Stage, StageStats

KEPT_WAITS = 1024


@dataclass(slots=True)
class Item:
    """A group that is out."""

    stage: Stage
    payload: bytes | None = None
    tombstone: bool = False
    failed: int = 0  # deliveries in this stage
    reasons: list[str] = field(default_factory=list)
    lease_id: str | None = None
    sampled_at: int = 0  # groups that were acked when its samples came in


class Ready:
    """The ready ordinals of a stage, and since when. Every call costs O(log ready) an ordinal."""

    def __init__(self) -> None:
        self.since: dict[int, float] = {}  # in the order in which they came
        # The same ordinals, and until they come to the top some that are not ready any more.
        self._heap: list[int] = []
        self._waits: deque[float] = deque(maxlen=KEPT_WAITS)

    def add(self, ordinal: int, now: float) -> None:
        """From now on it waits to be leased."""
        self.since[ordinal] = now
        if len(self._heap) > 2 * len(self.since) + 1024:  # mostly of ordinals that are gone
            self._heap = sorted(self.since)
        else:
            heapq.heappush(self._heap, ordinal)

    def take(self, ordinal: int, now: float) -> None:
        """It was leased."""
        self._waits.append(now - self.since.pop(ordinal))

    def lowest(self, n: int) -> list[int]:
        """The lowest `n` ordinals, ascending; they stay ready until they are taken."""
        found: list[int] = []
        while self._heap and len(found) < n:
            ordinal = heapq.heappop(self._heap)
            if ordinal in self.since and ordinal not in found[-1:]:  # it may have come twice
                found.append(ordinal)
        for ordinal in found:
            heapq.heappush(self._heap, ordinal)
        return found

    def stats(self, leased: int, now: float) -> StageStats:
        """The stage now, of which so many are leased."""
        waits = sorted(self._waits) or [0.0]
        return StageStats(
            ready=len(self.since),
            leased=leased,
            oldest_wait=now - next(iter(self.since.values()), now),
            wait_p50=waits[len(waits) // 2],
            wait_p95=waits[len(waits) * 95 // 100],
        )


class Acked:
    """The ordinals that the learner is done with."""

    def __init__(self, frontier: Frontier) -> None:
        self.next_unacked = frontier.next_unacked
        self.dropped = frontier.dropped
        self._above = set(frontier.acked_above)

    def __contains__(self, ordinal: int) -> bool:
        return ordinal < self.next_unacked or ordinal in self._above

    def __len__(self) -> int:
        return self.next_unacked + len(self._above)

    def add(self, ordinal: int, dropped: bool) -> None:
        """One more; dropped or trained."""
        self._above.add(ordinal)
        self.dropped += dropped
        while self.next_unacked in self._above:
            self._above.remove(self.next_unacked)
            self.next_unacked += 1

    def frontier(self) -> Frontier:
        """To begin from again."""
        return Frontier(self.next_unacked, tuple(sorted(self._above)), self.dropped)


def survivors_of(
    at_hand: Mapping[int, Item], quarantined: Iterable[Quarantined], frontier: Frontier, mode: str
) -> dict[int, Item]:
    """What a learner that goes on from the frontier may train with: see `ReplayQueue.restart`."""
    acked = Acked(frontier)

    def is_of_known_policy(item: Item) -> bool:
        sampled = item.stage is not Stage.TO_SAMPLE and item.sampled_at < len(acked)
        return mode == "ordered" or item.tombstone or sampled

    survivors = {
        given_up.ordinal: Item(Stage.TO_TRAIN, tombstone=True, reasons=[*given_up.reasons])
        for given_up in quarantined
        if given_up.ordinal not in acked
    }
    for ordinal, item in at_hand.items():
        if ordinal not in acked and is_of_known_policy(item):
            survivors[ordinal] = item
            if item.stage is Stage.TO_TRAIN:  # the learner is a new one
                item.lease_id = None
    return survivors


def next_step(n: int, to_train: Ready, acked: Acked, items: Mapping[int, Item]) -> list[int]:
    """The first `n` ordinals that are not acked or being trained; [] unless all are ready."""
    ready = to_train.since
    if len(ready) < n:  # the usual answer, and one is sought after every call while it waits
        return []
    ordinals: list[int] = []
    ordinal = acked.next_unacked
    while len(ordinals) < n:
        if ordinal in ready:
            ordinals.append(ordinal)
        elif ordinal not in acked:
            item = items.get(ordinal)
            if ordinals or item is None or item.stage is not Stage.TO_TRAIN:
                return []
        ordinal += 1
    return ordinals
