"""A log says what matters once, with what it is about, and does not flood."""

import json
import logging

import pytest

from deploy.config import RunConfig
from deploy.logs import JsonFormatter, RepeatLimiter, warnings_to_file

logger = logging.getLogger("tests.logs")


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


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_controllers_warnings_are_in_a_file_of_the_run(tmp_path, form):
    config = RunConfig.model_validate(
        {
            "name": "run",
            "runs": str(tmp_path),
            "task": {"kind": "detection"},
            "model": {"preset": "tiny"},
            "logging": {"format": form},
        }
    )
    path = config.directory / "logs" / "controller.log"
    with warnings_to_file(config, "controller"):
        logger.info("not this")
        assert not path.exists()
        for _ in range(100):
            logger.warning("reward-0: died")
    lines = path.read_text().splitlines()
    assert len(lines) == 6  # the first five, and how many more
    assert "(repeated 95 times)" in lines[-1]
    if form == "json":
        assert {json.loads(line)["role"] for line in lines} == {"controller"}
        assert json.loads(lines[-1])["repeated"] == 95
