"""Where the processes of a run spent their time, from what the run left."""

import json
import re
from pathlib import Path

import pytest

from deploy.report.plots import time_bars
from deploy.report.records import read_records
from deploy.report.timings import ProcessTime, learner_seconds, process_times
from tests.unit.test_report import run_directory, write_lines


def test_the_learners_seconds_add_up() -> None:
    tuning = [
        {"step": 1, "seconds/waiting": 1.0, "seconds/training": 2.0},
        {"step": 2, "seconds/waiting": 0.5, "seconds/training": 2.0},
    ]
    assert learner_seconds(tuning) == {"waiting": 1.5, "training": 4.0}
    pretraining = [
        {"step": 0, "warmup/total": 1.0},
        {"step": 50, "seconds/step": 0.2, "seconds/waiting_for_data": 0.05},
        {"step": 100, "seconds/step": 0.1, "seconds/waiting_for_data": 0.0},
    ]
    total = learner_seconds(pretraining)
    assert total == pytest.approx({"training": 12.5, "waiting": 2.5})


def test_workers_and_the_evaluator_have_their_times(tmp_path: Path) -> None:
    run_directory(tmp_path)
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "seconds/training": 3.0}])
    write_lines(
        tmp_path / "evaluations.jsonl",
        [
            {"step": 0, "split": "validation", "seconds": 2.0},
            {"step": 1, "split": "validation", "seconds": 1},
        ],
    )
    workers = [
        {"name": "learner", "restarts": 0, "step": 1},
        {"name": "sampler", "restarts": 1, "working": 5.0, "loading_weights": 2.0, "waiting": 0.0},
        {
            "name": "reward",
            "restarts": 0,
            "working": 6.0,
            "parts": {"loading": 0.5, "decoding": 3.0, "merging": 0.0, "scoring": 1.5},
            "waiting": 4.0,
        },
        {"name": "evaluator", "restarts": 3, "seconds": 1},
    ]
    (tmp_path / "status.json").write_text(json.dumps({"run": "a run", "workers": workers}))
    assert process_times(read_records(tmp_path)) == [
        ProcessTime("learner", {"training": 3.0}),
        ProcessTime("sampler", {"working": 3.0, "loading weights": 2.0}, restarts=1),
        ProcessTime(
            "reward",
            {"working": 1.0, "loading": 0.5, "decoding": 3.0, "scoring": 1.5, "waiting": 4.0},
        ),
        ProcessTime("evaluator", {"evaluating": 3.0}, restarts=3),
    ]


def test_what_one_process_did_has_a_colour_each() -> None:
    """All that processes tell apart today, in one chart."""
    kinds = [
        ["loading", "training", "publishing", "waiting"],
        ["working", "loading weights", "waiting"],
        ["working", "loading", "decoding", "merging", "scoring", "waiting"],
        ["evaluating"],
    ]
    timings = [ProcessTime(str(i), dict.fromkeys(kind, 1.0)) for i, kind in enumerate(kinds)]
    colours = set(re.findall(r"var\(--(?:hue\d+|line)\)", time_bars(timings)))
    assert len(colours) == len({kind for process in kinds for kind in process})
