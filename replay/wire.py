"""The queue's contract on the wire: `replay.queue` to and from `protos/replay.proto`.

What comes from outside is checked here: a number that is none, an unknown stage or an ordinal that
is not one raises `WireError` before the queue has seen anything of it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from protos import replay_pb2 as pb
from protos.trajectory import WireError, uint64
from replay.queue import Completion, Frontier, Lease, Quarantined, Stage, StageStats, Stats

T = TypeVar("T")

SERVICE = "rewardtune.v1.ReplayService"
CLOSED, FENCED = "REASON_CLOSED", "REASON_FENCED"
MAX_WAIT, LEAST_TTL, MAX_TTL = 60.0, 1.0, 86400.0
MAX_NAME = 200
MAX_ITEMS = 2**18
"""Of one call: Redis takes 2^20 words, three for an item, and serves nobody else meanwhile."""

_STAGES = {
    Stage.TO_SAMPLE: pb.STAGE_TO_SAMPLE,
    Stage.TO_SCORE: pb.STAGE_TO_SCORE,
    Stage.TO_TRAIN: pb.STAGE_TO_TRAIN,
}
_STAGES_READ = {number: stage for stage, number in _STAGES.items()}
_COMPLETIONS = {
    Completion.DONE: pb.COMPLETION_DONE,
    Completion.TOO_LATE: pb.COMPLETION_TOO_LATE,
}
_COMPLETIONS_READ = {number: completion for completion, number in _COMPLETIONS.items()}


def stage_number(stage: str) -> pb.Stage:
    """A stage; `ValueError` for what is none."""
    return _STAGES[Stage(stage)]


def read_stage(number: int) -> Stage:
    """The stage; `WireError` for a number that is none."""
    stage = _STAGES_READ.get(number)  # type: ignore[call-overload]  # an open enum
    if stage is None:
        raise WireError(f"stage {number} is none of {', '.join(Stage)}")
    return Stage(stage)


def read_seconds(name: str, value: float, most: float, least: float = 0.0) -> float:
    """The value; `WireError` where it is not a number in `least .. most`."""
    if not math.isfinite(value) or not least <= value <= most:
        raise WireError(f"{name} is {value} s; it must be in {least:g} .. {most:g}")
    return value


def read_name(name: str, value: str) -> str:
    """A name that callers choose; `WireError` for an empty or long one."""
    if not 0 < len(value) <= MAX_NAME:
        raise WireError(f"{name} has {len(value)} characters; it must have 1 .. {MAX_NAME}")
    return value


def read_items(name: str, values: Sequence[T]) -> list[T]:
    """The values; `WireError` for more than one call may have."""
    if len(values) > MAX_ITEMS:
        raise WireError(f"{len(values)} {name}: at most {MAX_ITEMS} may be in one call")
    return list(values)


def lease_message(lease: Lease) -> pb.HeldGroup:
    """A lease."""
    return pb.HeldGroup(
        lease_id=lease.id,
        ordinal=uint64("ordinal", lease.ordinal),
        stage=_STAGES[lease.stage],
        worker=lease.worker,
        ttl=lease.ttl,
        deadline=lease.deadline,
        delivery=lease.delivery,
        payload=lease.payload,
        reasons=lease.reasons,
        block_start=lease.block_start,
    )


def read_lease(message: pb.HeldGroup) -> Lease:
    """A lease; `WireError` where it is of no stage."""
    return Lease(
        id=message.lease_id,
        ordinal=message.ordinal,
        stage=read_stage(message.stage),
        worker=message.worker,
        ttl=message.ttl,
        deadline=message.deadline,
        delivery=message.delivery,
        payload=message.payload if message.HasField("payload") else None,
        reasons=tuple(message.reasons),
        block_start=message.block_start if message.HasField("block_start") else None,
    )


def completion_numbers(completions: Iterable[Completion]) -> list[pb.Completion]:
    """Completions, in order."""
    return [_COMPLETIONS[completion] for completion in completions]


def read_completions(numbers: Sequence[int], expected: int) -> list[Completion]:
    """As many completions as were asked for; else `WireError`."""
    if len(numbers) != expected or any(number not in _COMPLETIONS_READ for number in numbers):
        raise WireError(f"completions {list(numbers)} for {expected} items")
    return [_COMPLETIONS_READ[number] for number in numbers]  # type: ignore[index]


def frontier_message(frontier: Frontier) -> pb.Frontier:
    """A frontier."""
    return pb.Frontier(
        next_unacked=frontier.next_unacked,
        acked_above=frontier.acked_above,
        dropped=frontier.dropped,
    )


def read_frontier(message: pb.Frontier) -> Frontier:
    """A frontier; `WireError` where the numbers are none."""
    try:
        return Frontier(message.next_unacked, tuple(message.acked_above), message.dropped)
    except ValueError as error:
        raise WireError(str(error)) from error


def stats_message(stats: Stats) -> pb.GetStatsResponse:
    """The figures."""
    return pb.GetStatsResponse(
        stages=[
            pb.GetStatsResponse.StageStats(
                stage=_STAGES[stage],
                ready=of.ready,
                leased=of.leased,
                oldest_wait=of.oldest_wait,
                wait_p50=of.wait_p50,
                wait_p95=of.wait_p95,
            )
            for stage, of in stats.stages.items()
        ],
        out=stats.out,
        window=stats.window,
        room=max(0, stats.room),
        acked=stats.acked,
        dropped=stats.dropped,
        finished=stats.finished,
        quarantined=stats.quarantined,
        redelivered=stats.redelivered,
        expired=stats.expired,
        expired_by_worker=dict(stats.expired_by_worker),
        too_late=stats.too_late,
        last_reasons=stats.last_reasons,
        closed=stats.closed,
        held_by_worker=dict(stats.held_by_worker),
    )


def read_stats(message: pb.GetStatsResponse) -> Stats:
    """The figures."""
    return Stats(
        stages={
            read_stage(of.stage): StageStats(
                of.ready, of.leased, of.oldest_wait, of.wait_p50, of.wait_p95
            )
            for of in message.stages
        },
        out=message.out,
        window=message.window,
        room=message.room,
        acked=message.acked,
        dropped=message.dropped,
        finished=message.finished,
        quarantined=message.quarantined,
        redelivered=message.redelivered,
        expired=message.expired,
        expired_by_worker=dict(message.expired_by_worker),
        too_late=message.too_late,
        last_reasons=tuple(message.last_reasons),
        closed=message.closed,
        held_by_worker=dict(message.held_by_worker),
    )


def quarantine_message(given_up: Iterable[Quarantined]) -> pb.GetQuarantineResponse:
    """The groups that were given up."""
    kind = pb.GetQuarantineResponse.Quarantined
    return pb.GetQuarantineResponse(
        groups=[
            kind(ordinal=one.ordinal, stage=_STAGES[one.stage], reasons=one.reasons)
            for one in given_up
        ]
    )


def read_quarantine(message: pb.GetQuarantineResponse) -> list[Quarantined]:
    """The groups that were given up."""
    return [
        Quarantined(one.ordinal, read_stage(one.stage), tuple(one.reasons))
        for one in message.groups
    ]
