"""One trace a group across three processes, and logs that programs can read, of a real run."""

import json
from collections.abc import Callable

import pytest

from deploy import pool
from deploy.run_directory import run_id
from deploy.tracing import trace_id
from tests.otlp import attributes, spans_of
from tests.runs import STEPS, Run

Tune = Callable[..., Run]


def test_the_spans_of_a_group_from_three_processes_make_one_trace(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "LAST_WORDS_SECONDS", 120.0)  # a busy machine's take long
    odd = {"path": "tests.odd_rewards:FaultyReward", "options": {"fault": "raises"}}
    changes = {"tracing.endpoint": "file", "logging.format": "json", "rewards.terms": [odd]}
    run = tune("traced", changes)

    files = sorted((run.directory / "traces").iterdir())
    assert [path.name for path in files] == ["learner.jsonl", "reward.jsonl", "sampler.jsonl"]
    by_trace: dict[bytes, list] = {}
    for path in files:
        for process, span in spans_of(path.read_text().splitlines()):
            by_trace.setdefault(span.trace_id, []).append((process, span))
    for ordinal in range(STEPS * 4):
        group = by_trace[trace_id(f"traced/{run_id(run.directory)}", ordinal).to_bytes(16, "big")]
        group.sort(key=lambda item: item[1].start_time_unix_nano)
        assert [span.name for _, span in group] == ["sample", "score", "train"]
        assert {attributes(span)["rewardtune.ordinal"] for _, span in group} == {ordinal}
        processes = [process for process, _ in group]
        assert [process["rewardtune.role"] for process in processes] == [
            "sampler",
            "reward",
            "learner",
        ]
        assert len({process["process.pid"] for process in processes}) == 3
        parents = [span.parent_span_id for _, span in group]
        assert parents == [b"", group[0][1].span_id, group[1][1].span_id]

    lines = [
        json.loads(line)
        for path in (run.directory / "logs").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {line["run"] for line in lines} == {"traced"}
    assert {line["role"] for line in lines} >= {"controller", "learner", "sampler", "reward"}
    told = [line["message"] for line in lines if line["role"] == "controller"]
    assert told[0].startswith("the run begins")
    assert told[-1] == "the run is finished"
    assert any(message.startswith("reward runs as process") for message in told)
    assert max(line["step"] for line in lines if line["role"] == "controller") == STEPS
    failed = [line for line in lines if line["role"] == "reward" and line["level"] == "warning"]
    assert failed
    assert all("ordinal" in line and "example" in line for line in failed)
    assert {line["step"] for line in lines if line["role"] == "learner" and "step" in line}
