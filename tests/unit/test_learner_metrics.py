import io
import json
import os
import signal
import threading

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from learner.metrics import METRICS_FILE, MetricsWriter, read_metrics
from learner.progress import ProgressDisplay
from learner.stop import StopRequest


def steps(directory):
    return [record["step"] for record in read_metrics(directory)]


def test_every_line_is_on_the_disk_when_write_returns(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"reward/mean": 0.5})
        (record,) = read_metrics(tmp_path)
    assert record["step"] == 1
    assert record["reward/mean"] == 0.5


def test_a_value_that_is_not_finite_is_left_out(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": float("nan"), "b": 2, "c": float("inf")})
    (record,) = read_metrics(tmp_path)
    assert record.keys() == {"step", "time", "b"}


def test_a_resumed_run_forgets_the_steps_after_its_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, {"a": step})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 6, "a"')  # Cut short by a crash.
    with MetricsWriter(tmp_path, resumed_step=3) as writer:
        writer.write(4, {"a": 40})
    assert [(r["step"], r["a"]) for r in read_metrics(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]


def test_a_second_run_in_a_directory_is_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": 1})
    with pytest.raises(FileExistsError, match=f"{METRICS_FILE} exists: another run"):
        MetricsWriter(tmp_path)
    assert steps(tmp_path) == [1]


def test_a_broken_line_inside_the_file_is_named(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2: not JSON: 'nonsense'"):
        steps(tmp_path)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(7, {"reward/mean": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = []
    data = file.read_bytes()
    while data:  # Length, its checksum, the event, its checksum.
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + length :]
    assert found == [(7, "reward/mean", 0.25)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_progress_is_calm_where_there_is_no_terminal():
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=False, width=100)
    with ProgressDisplay(
        "tune", 100, seconds_between_lines=10, console=console, clock=clock
    ) as progress:
        for step in range(1, 101):
            clock.now += 0.25
            progress.update(step, {"loss": 1 / step})
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # After 10 and 20 of the 25 seconds, and at the end.
    assert lines[0].startswith("tune 40/100")
    assert "loss 0.025" in lines[0]
    assert lines[-1].startswith("tune 100/100")


def test_the_rate_does_not_count_the_steps_of_the_run_that_is_resumed():
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=False, width=100)
    with ProgressDisplay(
        "tune", 200, seconds_between_lines=10, console=console, clock=clock
    ) as progress:
        progress.update(0, begun=False)
        for step in (139, 140, 144):
            clock.now += 10.0
            progress.update(step)
    assert out.getvalue().splitlines() == [
        "tune 139/200",
        "tune 140/200  0.1/s",
        "tune 144/200  0.25/s",
    ]


def test_progress_draws_a_bar_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with ProgressDisplay("tune", 10, console=console) as progress:
        progress.update(10, {"loss": 0.5})
        progress.say("saved")
    assert "10/10" in out.getvalue()
    assert "loss 0.5" in out.getvalue()
    assert "saved" in out.getvalue()


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_only_a_call_asks_to_stop():
    seen = []

    def run():
        with StopRequest() as stop:
            stop.request()
            seen.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]


def test_metrics_are_json_a_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": 1})
        writer.write(2, {"a": 2})
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["a"] for line in lines] == [1, 2]
