"""What a run waits for, in one sentence; pure, from its status."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.sizing import needed

BUSY = 0.8
# Two roles whose shares of work differ by less are equally busy.
ALIKE = 0.1
IDLE = 0.05
STALLED_SECONDS = 20.0
ENDED = ("finished", "stopped", "failed")
POOLS = {"sampler": "samplers", "reward": "reward workers"}
SECTIONS = {"sampler": "actors", "reward": "rewards"}
"""Of the config, and of `rewardtune scale`."""
_NAMES = {"learner": "the learner", **POOLS}


@dataclass(frozen=True)
class Bottleneck:
    """What holds a run up.

    Attributes:
      role: learner, sampler, reward, evaluator, or queue; None: nothing, or it cannot be told.
      sentence: for people.
      more: how many more workers of the role would balance the run; None where that is not it.
    """

    role: str | None
    sentence: str
    more: int | None = None

    def to_json(self) -> dict[str, Any]:
        """For the status."""
        return {"role": self.role, "sentence": self.sentence, "more": self.more}


def has_ended(status: Mapping[str, Any]) -> bool:
    """Whether a run says that it is over: after the learner, the evaluator may still be at work."""
    return status["state"] in ENDED and all(w["state"] == "ended" for w in status["workers"])


def find_bottleneck(status: Mapping[str, Any]) -> Bottleneck:
    """The bottleneck of a status with the additions of `deploy.recent`."""
    return (
        _outside_of_work(status)
        or _not_all_there(status)
        or _stalled(status)
        or _too_early(status)
        or _busiest(status)
    )


def _outside_of_work(status: Mapping[str, Any]) -> Bottleneck | None:
    """It is over, or nobody can work."""
    if waiting := status["queue"].get("waiting"):
        return Bottleneck("queue", f"everyone is {waiting}")
    if has_ended(status):
        return Bottleneck(None, f"the run is {status['state']}")
    if status["state"] in ENDED:
        evaluating = status["roles"].get("evaluator", {}).get("workers", {}).get("running", 0)
        behind = status["evaluation"]["behind"]
        if evaluating and behind:
            return Bottleneck(
                "evaluator",
                f"the learner is done; the evaluator is the bottleneck: {_count(behind, 'policy')} "
                "left to evaluate",
            )
        return Bottleneck(None, "the run is ending")
    return None


def _not_all_there(status: Mapping[str, Any]) -> Bottleneck | None:
    if status["state"] == "starting":
        return Bottleneck("learner", "the run is starting: the learner is not at work yet")
    if status["state"] == "waiting for a learner":
        return Bottleneck("learner", "the run waits for a learner from outside")
    outside = {worker["role"] for worker in status.get("outside", ())}
    for role, name in POOLS.items():
        states = status["roles"].get(role, {}).get("workers", {})
        if role in outside or states.get("running") or states.get("draining"):
            continue
        one = name.removesuffix("s")
        if pending := states.get("pending"):
            why = (
                f"{pending} pending, still starting or without room in the cluster; `rewardtune "
                "doctor` tells which"
            )
        else:
            why = (
                f"none is wanted, and none works from outside; `rewardtune scale "
                f"{SECTIONS[role]}=N` starts some, `rewardtune work {role}` joins one"
            )
        return Bottleneck(role, f"no {one} is at work: {why}")
    return None


def _stalled(status: Mapping[str, Any]) -> Bottleneck | None:
    """Nothing moves, and nobody works."""
    throughput = status["throughput"]
    moved = any(of["recent"] for of in throughput["groups"].values())
    shares = [busy for role in _NAMES if (busy := _busy(status, role)) is not None]
    at_work = any(share > IDLE for share in shares)
    if moved or at_work or throughput["seconds"] < STALLED_SECONDS:
        return None
    if elsewhere := _in_flight(status):
        return _answers(elsewhere)
    queue = status["queue"]
    held = {stage: of["ready"] + of["leased"] for stage, of in queue["stages"].items()}
    where = ", ".join(f"{n} {stage}" for stage, n in held.items() if n) or "none in any stage"
    return Bottleneck(
        None,
        f"nothing moves: no group has left its stage for {throughput['seconds']:.0f} s and nobody "
        f"works ({queue['out']} of {queue['window']} groups out: {where}); see logs/",
    )


def _too_early(status: Mapping[str, Any]) -> Bottleneck | None:
    outside = {worker["role"] for worker in status.get("outside", ())}
    for role in outside & set(POOLS):
        if not status["roles"].get(role, {}).get("workers"):
            pool = POOLS[role]
            return Bottleneck(None, f"cannot tell: all {pool} are outside of Ray, busy or not")
    if any(_busy(status, role) is None for role in POOLS) or not any(
        of["recent"] for of in status["throughput"]["groups"].values()
    ):
        return Bottleneck(None, "too early to tell: no group has left its stage yet")
    return None


def _busiest(status: Mapping[str, Any]) -> Bottleneck:
    shares = {role: busy for role in _NAMES if (busy := _busy(status, role)) is not None}
    ranked = sorted(shares, key=lambda role: -shares[role])
    first, second = ranked[0], ranked[1]
    if shares[first] < BUSY:
        if elsewhere := _in_flight(status):
            return _answers(elsewhere)
        return _take_turns(status, shares)
    alike = shares[first] - shares[second] < ALIKE and shares[second] >= BUSY - ALIKE
    if alike and "learner" in (first, second):
        return Bottleneck(
            None, f"balanced: {_named(shares, first)} and {_named(shares, second)} busy"
        )
    if alike and {first, second} == set(POOLS):
        # Both are busy: what has groups waiting before it is the slower one.
        first = "reward" if status["queue"]["stages"]["to_score"]["ready"] else "sampler"
    return _learner(status, shares) if first == "learner" else _pool(status, first)


def _learner(status: Mapping[str, Any], shares: Mapping[str, float]) -> Bottleneck:
    """More of anything would not help; fewer may do."""
    rate = _capacity(status, "learner")
    spare = []
    for role in POOLS:
        have, enough = _running(status, role), _enough(status, role, rate)
        if enough is not None and enough < have:
            spare.append(f"{enough} of {have} {POOLS[role]}")
    sentence = f"the learner is the bottleneck: {_percent(shares['learner'])} busy"
    if spare:
        sentence += f"; {' and '.join(spare)} would do"
    return Bottleneck("learner", sentence)


def _pool(status: Mapping[str, Any], role: str) -> Bottleneck:
    """More workers would help, up to what the slowest of the others can take."""
    others = [_capacity(status, other) for other in _NAMES if other != role]
    known = [rate for rate in others if rate is not None]
    enough = _enough(status, role, min(known)) if known else None
    more = None if enough is None else max(0, enough - _running(status, role)) or None
    sentence = f"{POOLS[role]} are the bottleneck: {_percent(_busy(status, role))} busy"
    if role == "reward" and (backlog := _backlog_seconds(status)):
        sentence += f", backlog {backlog:.0f} s"
    if more is not None:
        sentence += f"; {more} more would balance"
    return Bottleneck(role, sentence, more)


def _take_turns(status: Mapping[str, Any], shares: Mapping[str, float]) -> Bottleneck:
    busy = ", ".join(
        f"{_NAMES[role].removeprefix('the ')} {_percent(shares[role])}" for role in shares
    )
    queue, bound = status["queue"], status["staleness"]["bound"]
    why = (
        "policy_lag 0 has them take turns; 1 would let them overlap"
        if bound == 0
        else f"they wait for each other, with {queue['out']} of {queue['window']} groups out"
    )
    return Bottleneck(None, f"no stage is busy all the time ({busy}): {why}")


def _answers(in_flight: int) -> Bottleneck:
    groups = _count(in_flight, "group")
    waits = "waits" if in_flight == 1 else "wait"
    return Bottleneck(
        "reward", f"answers from elsewhere are the bottleneck: {groups} {waits} for one"
    )


def _busy(status: Mapping[str, Any], role: str) -> float | None:
    busy: float | None = status["roles"].get(role, {}).get("busy")
    return busy


def _running(status: Mapping[str, Any], role: str) -> int:
    count: int = status["roles"].get(role, {}).get("workers", {}).get("running", 0)
    return count


def _capacity(status: Mapping[str, Any], role: str) -> float | None:
    """Groups a second that a role could do if it never waited."""
    seconds = status["roles"].get(role, {}).get("seconds_per_group")
    return _running(status, role) / seconds if seconds else None


def _enough(status: Mapping[str, Any], role: str, rate: float | None) -> int | None:
    """Workers of a role for so many groups a second."""
    seconds = status["roles"][role]["seconds_per_group"]
    return needed(seconds, rate) if seconds and rate else None


def _backlog_seconds(status: Mapping[str, Any]) -> float | None:
    """How long the reward workers need for what waits for them now."""
    rate = status["throughput"]["groups"]["to_score"]["recent"]
    ready: int = status["queue"]["stages"]["to_score"]["ready"]
    return ready / rate if rate else None


def _in_flight(status: Mapping[str, Any]) -> int:
    return sum(worker.get("in_flight", 0) for worker in status["workers"])


def _named(shares: Mapping[str, float], role: str) -> str:
    return f"{_NAMES[role]} {_percent(shares[role])}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.0f} %"


def _count(number: int, noun: str) -> str:
    plural = noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"
