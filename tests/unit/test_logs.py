"""A log says what matters once, with what it is about, and does not flood."""

import io
import itertools
import json
import logging

import pytest

from deploy.config import RunConfig
from deploy.logs import BURST, KINDS, OURS, JsonFormatter, RepeatLimiter, log_of_run
from deploy.serve import log_to_stderr

controller_logger = logging.getLogger("deploy.tests")
other_logger = logging.getLogger("jax.tests")


class Kept(logging.Handler):
    def __init__(self, level=logging.NOTSET):
        super().__init__(level)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def said(self):
        return [record.getMessage() for record in self.records]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def limited():
    """(logger, what comes out, clock): at most 2 lines of a place in 10 s."""
    kept, clock = Kept(), Clock()
    handler = RepeatLimiter([kept], burst=2, window=10.0, clock=clock)
    ours = logging.Logger("ours", logging.INFO)
    ours.addHandler(handler)
    yield ours, kept, clock
    handler.close()


def complain(ours, number):
    ours.warning("group %d failed", number)


def test_repeats_are_counted_and_told_with_the_last_of_them(limited):
    ours, kept, clock = limited
    for number in range(314):
        complain(ours, number)
    assert kept.said == ["group 0 failed", "group 1 failed"]
    clock.now = 11.0
    ours.info("something else")
    assert kept.said[2:] == ["group 313 failed (repeated 312 times)", "something else"]
    assert kept.records[2].repeated == 312
    complain(ours, 314)  # a new minute
    assert kept.said[-1] == "group 314 failed"


def test_what_was_counted_is_told_at_the_end(limited):
    ours, kept, _ = limited
    for number in range(5):
        complain(ours, number)
    ours.handlers[0].flush()
    ours.handlers[0].flush()
    assert kept.said == ["group 0 failed", "group 1 failed", "group 4 failed (repeated 3 times)"]


def test_a_repeating_line_does_not_hide_others(limited):
    ours, kept, _ = limited
    for number in range(10):
        complain(ours, number)
    ours.error("disk full")
    assert kept.said[-1] == "disk full"


def test_one_place_in_the_code_does_not_hide_one_worker_or_fault_behind_another(limited):
    ours, kept, _ = limited
    for worker in ("reward-0", "reward-1"):
        for _ in range(3):
            ours.warning("%s: died", worker, extra={"subject": worker})
    assert kept.said == ["reward-0: died"] * 2 + ["reward-1: died"] * 2
    for fault in ("no space left", "no permission"):
        for number in range(3):
            ours.log(logging.WARNING, "group %d: %s", number, fault)
    assert kept.said[4:] == [
        f"group {number}: {fault}"
        for fault in ("no space left", "no permission")
        for number in (0, 1)
    ]


def test_texts_that_all_differ_do_not_flood(limited):
    ours, kept, _ = limited
    names = ["".join(pair) for pair in itertools.product("abcdefghijklmnop", repeat=2)]
    for name in names:
        ours.warning("example %s is broken", name)
    assert len(kept.said) == KINDS + 2
    ours.handlers[0].flush()
    assert kept.said[-1] == f"example pp is broken (repeated {len(names) - KINDS - 2} times)"


def test_each_target_keeps_its_own_level():
    all_of_it, errors = Kept(), Kept(logging.ERROR)
    ours = logging.Logger("ours", logging.INFO)
    ours.addHandler(RepeatLimiter([all_of_it, errors]))
    ours.info("begins")
    ours.error("stuck")
    assert (all_of_it.said, errors.said) == (["begins", "stuck"], ["stuck"])


def test_a_json_line_names_run_role_worker_and_what_it_is_about():
    kept = Kept()
    ours = logging.Logger("ours", logging.INFO)
    ours.addHandler(kept)
    formatter = JsonFormatter("my run", "reward-3")
    ours.warning("ordinal %d: bad\nimage", 7, extra={"ordinal": 7, "example": "a/b", "other": 1})
    line = formatter.format(kept.records[0])
    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("time").endswith("+00:00")
    assert fields == {
        "level": "warning",
        "run": "my run",
        "role": "reward",
        "worker": "reward-3",
        "logger": "ours",
        "message": "ordinal 7: bad\nimage",
        "ordinal": 7,
        "example": "a/b",
    }
    try:
        raise ValueError("why")
    except ValueError:
        ours.exception("failed")
    assert "ValueError: why" in json.loads(formatter.format(kept.records[1]))["exception"]


def run_config(directory, form):
    return RunConfig.model_validate(
        {
            "name": "run",
            "runs": str(directory),
            "task": {"kind": "detection"},
            "model": {"preset": "tiny"},
            "logging": {"format": form},
        }
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_controllers_lines_are_in_a_file_of_the_run(tmp_path, form):
    config = run_config(tmp_path, form)
    path = config.directory / "logs" / "controller.log"
    with log_of_run(config, "controller", lambda: 17):
        controller_logger.info("rewards: 1 workers, 2 from now on")
        other_logger.info("compiled")
        for _ in range(100):
            controller_logger.warning("reward-0: died")
    controller_logger.warning("not any more")
    lines = path.read_text().splitlines()
    assert len(lines) == 7  # what was scaled, the first five, and how many more
    assert "2 from now on" in lines[0]
    assert "(repeated 95 times)" in lines[-1]
    if form == "json":
        told = [json.loads(line) for line in lines]
        assert {(line["run"], line["role"], line["step"]) for line in told} == {
            ("run", "controller", 17)
        }
        assert told[-1]["repeated"] == 95


def test_a_step_that_a_line_names_itself_stays(tmp_path):
    config = run_config(tmp_path, "json")
    with log_of_run(config, "controller", lambda: 17):
        controller_logger.info("saves", extra={"step": 16})
    (line,) = (config.directory / "logs" / "controller.log").read_text().splitlines()
    assert json.loads(line)["step"] == 16


@pytest.mark.parametrize("form", ["text", "json"])
def test_standard_error_has_the_commands_warnings_only_in_the_runs_format(tmp_path, form):
    stream = io.StringIO()
    terminal = logging.StreamHandler(stream)
    root = logging.getLogger()
    before = (root.level, controller_logger.getEffectiveLevel())
    root.addHandler(terminal)
    try:
        with log_of_run(run_config(tmp_path, form), "controller"):
            controller_logger.info("rewards: 1 workers, 2 from now on")
            controller_logger.warning("reward-0: died")
        controller_logger.warning("after")
    finally:
        root.removeHandler(terminal)
    during, after = stream.getvalue().splitlines()
    if form == "json":
        assert json.loads(during)["message"] == "reward-0: died"
    else:
        assert during == "reward-0: died"
    assert after == "after"
    assert (root.level, controller_logger.getEffectiveLevel()) == before


def test_what_ended_a_run_is_the_last_line_of_its_log(tmp_path):
    config = run_config(tmp_path, "json")

    def run():
        with log_of_run(config, "controller"):
            controller_logger.info("the run begins")
            raise ArithmeticError("the loss is nan")

    with pytest.raises(ArithmeticError):
        run()
    lines = (config.directory / "logs" / "controller.log").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["level"], last["message"]) == (
        "error",
        "the run ends by ArithmeticError: the loss is nan",
    )


def test_what_a_server_says_again_and_again_does_not_flood_its_standard_error():
    root, said = logging.getLogger(), io.StringIO()
    before = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in OURS}
    root.addHandler(logging.StreamHandler(said))
    try:
        log_to_stderr()
        log_to_stderr()
        for number in range(1000):
            complain(controller_logger, number)
        for handler in root.handlers:
            handler.flush()
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    lines = said.getvalue().splitlines()
    assert len(lines) == BURST + 1
    assert lines[-1] == f"group 999 failed (repeated {1000 - BURST} times)"
