"""What the controller leaves behind does not hide what ended the run."""

import json
import logging

import pytest

from deploy.config import RunConfig
from deploy.controller import Controller
from deploy.run_directory import ID_FILE, STATUS_FILE
from deploy.workers import Worker
from protos.trajectory import Ticket
from replay.config import QueueConfig
from replay.state import QueueState

HEADLINE = "mAP"


class NamedTask:
    headline = HEADLINE


def make_controller(directory, on_status):
    config = RunConfig.model_validate(
        {
            "name": "run",
            "runs": str(directory),
            "task": {"kind": "detection"},
            "model": {"preset": "tiny"},
            "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
        }
    )
    config.directory.mkdir()
    (config.directory / ID_FILE).write_text("id")
    controller = Controller(config, NamedTask(), on_status)
    controller._pool.workers = [Worker("learner", "learner", lambda name: None)]
    queue = QueueState(
        QueueConfig(groups_per_step=2, block=2), lambda o: Ticket(o, "a", 0, 0, None).to_bytes()
    )
    controller._stats = queue.stats(0.0)
    return controller


def raise_it(*arguments):
    raise ZeroDivisionError("while telling")


def end_with(error, controller):
    try:
        raise error
    finally:
        controller._report_end()


@pytest.mark.parametrize("broken", ["_on_status", "_status"])
def test_a_last_status_that_fails_does_not_hide_what_ended_the_run(tmp_path, caplog, broken):
    controller = make_controller(tmp_path, lambda status: None)
    setattr(controller, broken, raise_it)
    with caplog.at_level(logging.ERROR), pytest.raises(MemoryError, match="the learner's"):
        end_with(MemoryError("the learner's"), controller)
    assert "while telling" in caplog.text
    if broken == "_on_status":
        status = json.loads((tmp_path / "run" / STATUS_FILE).read_text())
        assert status["state"] == "failed"


def test_a_last_status_that_cannot_be_written_is_told_all_the_same(tmp_path, caplog):
    told = []
    controller = make_controller(tmp_path, told.append)
    (tmp_path / "run" / STATUS_FILE).mkdir()
    controller._report_end()
    assert [status["state"] for status in told] == ["failed"]
    assert "the status cannot be written" in caplog.text


def test_a_file_system_that_fails_for_a_while_does_not_end_the_run(tmp_path, caplog):
    told = []
    controller = make_controller(tmp_path, told.append)
    in_the_way = tmp_path / "run" / STATUS_FILE
    in_the_way.mkdir()
    controller._report_last()
    assert "the status cannot be written" in caplog.text
    assert len(told) == 1
    in_the_way.rmdir()
    controller._report_last()
    assert json.loads(in_the_way.read_text())["state"] == "starting"
    assert len(told) == 2
