"""Which ordinals may have trained nothing, by the faults that were injected, and no others."""

from collections.abc import Callable, Sequence

from deploy.soak.injector import Mended
from deploy.soak.schedule import Fault
from protos.trajectory import Ticket

# What a delivery's reason says that failed of a fault: {victim} and {pid} are the process that was
# hit, {index} is the fault. A learner's death fails no delivery.
MARKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("kill-sampler", "kill-reward", "stop-sampler", "stop-reward"),
        ("process {pid} died", "lease of {victim} expired"),
    ),
    **dict.fromkeys(
        ("kill-queue", "stop-queue", "kill-redis", "stop-redis"), (" expired", "QueueUnavailable")
    ),
    **dict.fromkeys(
        ("kill-weights", "stop-weights"), (" expired", " deadline", "WeightsUnavailable")
    ),
    "kill-command": (" expired", " died"),
    "reward-unavailable": ("soak fault {index}",),
    "reward-hangs": ("deadline",),
    "reward-memory": ("MemoryError",),
    "reward-raises": ("soak fault {index}",),
    "reward-nan": ("nan",),
    "reward-length": ("outcomes for",),
}


class Explained:
    """The faults so far, and what each may have cost."""

    def __init__(self, ticket: Callable[[int], Ticket]) -> None:
        """Begins with no fault; `ticket` is that of an ordinal."""
        self._ticket = ticket
        self._faults: list[tuple[Fault, Mended]] = []

    def note(self, fault: Fault, mended: Mended) -> None:
        """This fault happened."""
        self._faults.append((fault, mended))

    def fresh(self) -> Callable[[int, Sequence[str]], bool]:
        """An `Explains`.

        A reward that lied or raised explains one ordinal, of the example it did that with. Of the
        other faults each explains one failed delivery of an ordinal, so that an ordinal that was
        given up must have met as many of them as it had deliveries.
        """
        costly = [(f, m) for f, m in self._faults if f.kind.costs_a_group]
        others = [(f, m) for f, m in self._faults if not f.kind.costs_a_group]

        def explains(ordinal: int, reasons: Sequence[str]) -> bool:
            if not reasons:
                return False
            example = self._ticket(ordinal).example_id
            for one in costly:
                fits = [_may_explain(*one, example, reason) for reason in reasons]
                # All samples of one group, or the last delivery after others that failed.
                if all(fits) or (fits[-1] and _explained(reasons[:-1], example, others)):
                    costly.remove(one)
                    return True
            return _explained(reasons, example, others)

        return explains


def _explained(
    reasons: Sequence[str], example: str, faults: Sequence[tuple[Fault, Mended]]
) -> bool:
    """Whether each reason has a fault of its own."""
    fitting = [
        [place for place, one in enumerate(faults) if _may_explain(*one, example, reason)]
        for reason in reasons
    ]
    # Those first that few faults fit: else a reason that none fits is found out last.
    return _each_has_its_own(sorted(fitting, key=len), frozenset())


def _each_has_its_own(fitting: Sequence[Sequence[int]], taken: frozenset[int]) -> bool:
    if not fitting:
        return True
    return any(
        _each_has_its_own(fitting[1:], taken | {place})
        for place in fitting[0]
        if place not in taken
    )


def _may_explain(fault: Fault, mended: Mended, example: str, reason: str) -> bool:
    if mended.example_id not in (None, example):
        return False
    values = {"victim": mended.victim, "pid": mended.pid, "index": fault.index}
    return any(_says(reason, mark.format(**values)) for mark in MARKS.get(fault.kind.name, ()))


def _says(reason: str, mark: str) -> bool:
    """Whether it is there, and no longer number: 'soak fault 1' is not in 'soak fault 12'."""
    return any(not part[:1].isdigit() for part in reason.split(mark)[1:])
