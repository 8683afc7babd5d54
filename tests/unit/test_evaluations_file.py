"""The file of a run's evaluations outlives a full disk."""

from actors.evaluator import EVALUATIONS_FILE, append_evaluation, read_evaluations


def test_a_line_that_was_cut_short_costs_no_other(tmp_path):
    append_evaluation(tmp_path, {"step": 0, "mAP": 0.1})
    with (tmp_path / EVALUATIONS_FILE).open("a") as file:
        file.write('{"step": 100, "mA')  # here the disk was full
    append_evaluation(tmp_path, {"step": 100, "mAP": 0.2})
    append_evaluation(tmp_path, {"step": 200, "mAP": 0.3})
    assert [line["mAP"] for line in read_evaluations(tmp_path)] == [0.1, 0.2, 0.3]


def test_of_a_step_that_was_evaluated_again_the_last_counts(tmp_path):
    assert read_evaluations(tmp_path) == []
    for value in (0.1, 0.2):
        append_evaluation(tmp_path, {"step": 0, "mAP": value})
    assert read_evaluations(tmp_path) == [{"step": 0, "mAP": 0.2}]
