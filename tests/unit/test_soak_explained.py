"""A group that trained nothing is excused by faults that lead to just that, and by no others."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.config_file import ConfigError
from deploy.soak.command import soak
from deploy.soak.explained import MARKS, Explained
from deploy.soak.injector import Mended, RunEnded
from deploy.soak.ledger import Ledger, Verdict
from deploy.soak.schedule import KINDS, Fault
from deploy.soak.soak import Plan, Soak
from protos.trajectory import Ticket


def explaining(*faults):
    """By faults of (kind, victim, pid, example)."""
    explained = Explained(lambda ordinal: Ticket(ordinal, f"e{ordinal}", 0, 0, None))
    for index, (kind, victim, pid, example) in enumerate(faults):
        mended = Mended(victim, pid, 0.0, None, 1.0, example)
        explained.note(Fault(index, KINDS[kind], 0, 1, 0.0), mended)
    return explained.fresh()


KILL = ("kill-reward", "reward-0", 70, None)
STOP = ("stop-reward", "reward-1", 71, None)
DIED = "process 70 died: The actor died unexpectedly"
EXPIRED = "lease of reward-1 expired: not renewed within 5 s"


def test_a_group_that_met_a_fault_at_each_delivery_is_explained():
    again = ("kill-reward", "reward-0", 72, None)
    explains = explaining(KILL, STOP, again)
    assert explains(0, [DIED, EXPIRED, "process 72 died: The actor died"])
    assert explains(1, [DIED])  # a process held several groups


def test_one_fault_does_not_explain_two_failed_deliveries_of_a_group():
    assert not explaining(KILL, STOP)(0, [DIED, DIED, EXPIRED])


def test_a_reason_that_none_of_many_faults_fits_is_found_out_at_once():
    explains = explaining(*[KILL] * 200)
    assert explains(0, [DIED] * 6)
    assert not explains(1, [*[DIED] * 6, EXPIRED])


@pytest.mark.parametrize(
    "reason",
    [
        "process 7 died: The actor died",
        "process 170 died: The actor died",
        "lease of reward-0.1 expired: not renewed",
        "lease of sampler-0 expired: not renewed within 5 s",
        "exceeded its deadline of 5 s on ordinals [0]",
        "MemoryError: no memory",
        "ValueError: a bug",
        "soak fault 1",
    ],
)
def test_what_another_process_or_another_cause_did_is_not_explained(reason):
    assert not explaining(KILL, STOP)(0, [reason])
    assert not explaining(KILL, STOP)(0, [DIED, reason])


@pytest.mark.parametrize("kind", ["kill-learner", "stop-learner", "reward-delayed"])
def test_faults_that_fail_no_delivery_explain_none(kind):
    assert kind not in MARKS
    explains = explaining((kind, "learner", 70, None))
    assert not explains(0, [DIED])
    assert not explains(0, ["lease of learner expired"])


def test_a_group_without_reasons_is_never_explained():
    assert not explaining(KILL)(0, [])


def test_a_reward_that_raised_costs_its_own_example_once_and_says_so():
    lie = ("reward-raises", "raises", None, "e3")
    reason = "ValueError: soak fault 0"
    assert explaining(lie)(3, [reason])
    assert explaining(lie, KILL)(3, [DIED, reason])
    assert not explaining(lie)(3, [DIED, reason])
    assert not explaining(lie)(4, [reason])
    assert not explaining(lie)(3, ["KeyError: a bug"])
    assert not explaining(lie)(3, ["ValueError: soak fault 01"])
    explains = explaining(lie)
    assert explains(3, [reason])
    assert not explains(3, [reason])


def test_samples_that_are_no_numbers_are_of_one_fault_and_another_order_costs_nothing():
    reasons = ["UnreliableReward gave the reward nan"] * 4
    assert explaining(("reward-nan", "nan", None, "e3"))(3, reasons)
    assert not explaining(("reward-order", "order", None, "e3"))(3, reasons)


def test_a_fault_that_ends_the_run_is_a_violation(tmp_path, monkeypatch, tiny_values):
    from deploy.config import RunConfig

    plan = Plan(("kill-queue",), 1, 0, None, 5.0, 5.0, False)
    soaked = Soak(RunConfig.model_validate(tiny_values), plan, lambda line: None)
    verdict = Verdict(1, 4, 0, 0, 0, (), (), (), ())
    monkeypatch.setattr(soaked, "_judge", lambda ledger, explained: verdict)
    monkeypatch.setattr(soaked, "_settle", lambda injector: [])
    mended = Mended("command", 9, 0.0, 0.0, 1.0)

    def end(fault):
        raise RunEnded("the command ended")

    injector = SimpleNamespace(
        ledger=Ledger(tmp_path),
        run=SimpleNamespace(tail=lambda lines: "WorkerError: gone", pid=9),
        until=lambda what, look: None,
        inject=end,
        resume=lambda pid: mended,
    )
    fault = Fault(0, KINDS["kill-queue"], 0, 1, 0.0)
    soaked._one(fault, injector, Explained(lambda ordinal: None), 0.0)
    (violation,) = soaked.violations
    assert "fault 1, kill-queue, ended the run: WorkerError: gone" in violation
    assert soaked.records[0].ended_run == "WorkerError: gone"


def test_a_learner_of_several_hosts_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    preset = Path(__file__).resolve().parents[2] / "configs" / "quickstart" / "detection_map.yaml"
    with pytest.raises(ConfigError, match=r"learner\.hosts is 2: .*set learner\.hosts=1"):
        soak(str(preset), ["learner.hosts=2"])
