"""The soak's judge finds what it is there to find: lost, doubled and unexplained ordinals."""

import dataclasses
import json

import pytest

from deploy.soak.ledger import Ledger, verify
from learner.group_batches import TrainingGroup
from learner.ordinals import (
    ORDINALS_FILE,
    OrdinalsLine,
    OrdinalsWriter,
    account,
    read_ordinals,
    surviving_steps,
)

G = 4


def nothing_explains(ordinal, reasons):
    return False


def step(number: int, **changes) -> OrdinalsLine:
    first = (number - 1) * G
    line = OrdinalsLine(number, float(number), trained=tuple(range(first, first + G)))
    return dataclasses.replace(line, **changes)


def judged(steps, ordered=True, explains=nothing_explains):
    return verify(steps, G, ordered, window=2 * G, explains=explains)


def test_every_ordinal_once_is_no_fault():
    verdict = judged([step(1), step(2), step(3)])
    assert verdict.faults == ()
    assert (verdict.steps, verdict.trained) == (3, 12)


def test_a_lost_ordinal_is_found():
    verdict = judged([step(1), step(2, trained=(4, 5, 7)), step(3)])
    assert verdict.lost == (6,)
    assert any("1 ordinals lost: [6]" in fault for fault in verdict.faults)


def test_an_ordinal_that_was_trained_twice_is_found():
    verdict = judged([step(1), step(2, trained=(4, 5, 6, 3)), step(3)])
    assert verdict.twice == (3,)
    assert verdict.lost == (7,)


def test_a_step_that_is_missing_or_there_twice_is_found():
    assert "from 3 on" in judged([step(1), step(3)]).faults[0]
    again = judged([step(1), step(2), step(2), step(3)])
    assert again.twice == (4, 5, 6, 7)
    assert "from 2 on" in again.faults[0]


def test_groups_of_another_step_are_found_in_ordered_mode():
    swapped = [step(1, trained=(0, 1, 2, 4)), step(2, trained=(3, 5, 6, 7))]
    assert any("step 1 trained [0, 1, 2, 4]" in fault for fault in judged(swapped).faults)
    assert judged(swapped, ordered=False).faults == ()


def test_async_mode_may_still_have_groups_out_below_the_highest_but_not_far_below():
    assert judged([step(1, trained=(0, 1, 2, 9))], ordered=False).lost == ()
    late = [step(1), step(2, trained=(4, 5, 6, 30))]
    assert judged(late, ordered=False).lost == tuple(range(7, 23))


@pytest.mark.parametrize("what", ["quarantined", "unscored"])
def test_an_ordinal_that_trained_nothing_needs_an_injected_fault(what):
    steps = [step(1, trained=(0, 1, 3), **{what: {2: ["ValueError: soak fault 1"]}})]
    verdict = judged(steps)
    assert verdict.unexplained == (2,)
    assert verdict.lost == ()
    explained = judged(steps, explains=lambda ordinal, reasons: "soak fault" in reasons[0])
    assert explained.faults == ()


def test_a_learner_that_went_back_replaces_what_it_had_trained(tmp_path):
    ledger = Ledger(tmp_path)
    lines = [step(1), step(2), step(3), OrdinalsLine(1, 9.0, resumed=True), step(2), step(3)]
    for line in lines:
        ledger.add(line)
    assert judged(ledger.steps).faults == ()
    assert (ledger.resumed, ledger.redone) == (1, 2)
    assert surviving_steps(lines) == ledger.steps
    # Without the line that says so, the same steps are a fault.
    assert judged([line for line in lines if not line.resumed]).twice == tuple(range(4, 12))


def both_readers(directory):
    """What counts, by the soak's ledger and by `surviving_steps`, which must agree."""
    ledger = Ledger(directory)
    ledger.read()
    assert ledger.steps == surviving_steps(read_ordinals(directory))
    return [(line.step, line.epoch) for line in ledger.steps]


def test_what_a_learner_writes_whose_place_was_taken_does_not_count(tmp_path):
    with OrdinalsWriter(tmp_path, 0, "a.1") as cut_off:
        cut_off.write(1, [], [])
        cut_off.write(2, [], [])
        with OrdinalsWriter(tmp_path, 1, "a.2") as successor:
            cut_off.write(3, [], [])
            successor.write(2, [], [])
            cut_off.write(4, [], [])
            successor.write(3, [], [])
    assert both_readers(tmp_path) == [(1, "a.1"), (2, "a.2"), (3, "a.2")]


def test_a_learner_that_was_replaced_before_it_said_that_it_begins_takes_nothing_back(tmp_path):
    with OrdinalsWriter(tmp_path, 0, "a.10") as successor:
        successor.write(1, [], [])
        with OrdinalsWriter(tmp_path, 0, "a.9") as replaced:
            successor.write(2, [], [])
            replaced.write(1, [], [])
    assert both_readers(tmp_path) == [(1, "a.10"), (2, "a.10")]
    with OrdinalsWriter(tmp_path, 1, "b.1") as of_a_new_queue:
        of_a_new_queue.write(2, [], [])
    assert both_readers(tmp_path) == [(1, "a.10"), (2, "b.1")]


def test_lines_of_a_version_that_told_no_epoch_count_until_a_learner_tells_one(tmp_path):
    path = tmp_path / ORDINALS_FILE
    old = [{"resumed": 0, "time": 1.0}, step(1).to_json(), step(2).to_json()]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert both_readers(tmp_path) == [(1, ""), (2, "")]
    with OrdinalsWriter(tmp_path, 1, "a.1") as writer:
        writer.write(2, [], [])
    assert both_readers(tmp_path) == [(1, ""), (2, "a.1")]


def test_the_time_of_the_next_step_is_that_of_a_learner_that_began_after_the_fault(tmp_path):
    ledger = Ledger(tmp_path)
    for line in (step(1), step(2), step(3)):
        ledger.add(line)
    assert ledger.first_step_after(1.5) == 2.0
    assert ledger.first_step_after(3.0) is None
    assert ledger.first_step_after(2.5, by_new_learner=True) is None
    ledger.add(OrdinalsLine(2, 5.0, resumed=True))
    assert ledger.first_step_after(2.5, by_new_learner=True) is None
    ledger.add(step(3, time=6.0))
    assert ledger.first_step_after(2.5, by_new_learner=True) == 6.0


def test_the_file_is_read_as_it_was_written_while_it_grows(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.read()
    quarantined = [TrainingGroup(o, None, ("it broke",)) for o in range(4, 6)]
    with OrdinalsWriter(tmp_path, 0, "a.1") as writer:
        writer.write(1, [account([TrainingGroup(o, None) for o in range(4)])], [])
        ledger.read()
        assert ledger.step == 1
        writer.write(2, [account(quarantined)], [7])
        ledger.read()
    with OrdinalsWriter(tmp_path, 1, "a.2") as writer:
        writer.write(2, [account(quarantined)], [])
        ledger.read()
    assert ledger.resumed == 2
    assert ledger.steps == surviving_steps(read_ordinals(tmp_path))
    assert ledger.steps[-1].quarantined == {4: ["it broke"], 5: ["it broke"]}
    assert ledger.steps[-1].dropped == ()


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    with OrdinalsWriter(tmp_path, 0, "a.1") as writer:
        writer.write(1, [], [])
    path = tmp_path / ORDINALS_FILE
    path.write_text(path.read_text() + json.dumps(step(2).to_json())[:20])
    assert [line.step for line in surviving_steps(read_ordinals(tmp_path))] == [1]
    with OrdinalsWriter(tmp_path, 1, "a.2") as writer:
        writer.write(2, [], [])
    assert [line.step for line in surviving_steps(read_ordinals(tmp_path))] == [1, 2]
    ledger = Ledger(tmp_path)
    ledger.read()
    assert [line.step for line in ledger.steps] == [1, 2]


def test_ordinals_travel_as_ranges():
    line = step(3, trained=(8, 9, 11), quarantined={10: ["a", "b"]}, dropped=(2, 3))
    values = line.to_json()
    assert values["trained"] == [[8, 10], [11, 12]]
    assert OrdinalsLine.from_json(json.loads(json.dumps(values))) == line
