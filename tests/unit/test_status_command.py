"""`rewardtune status` as a user calls it."""

import itertools
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError
from typer.testing import CliRunner

from deploy import status_command, targets
from deploy.bottleneck import find_bottleneck
from deploy.cli import app
from deploy.run_directory import RunSilent, RunStarting, write_status
from tests.statuses import Imagined

OVER = dict.fromkeys(("learner", "sampler", "reward"), "ended")
REPOSITORY = Path(__file__).resolve().parents[2]


def write(directory: Path, name: str = "imagined", **changes) -> None:
    status = Imagined(**changes).status()
    status |= {"run": name, "bottleneck": find_bottleneck(status).to_json()}
    (directory / "runs" / name).mkdir(parents=True, exist_ok=True)
    write_status(directory / "runs" / name, status)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewardtune(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_run_is_found_by_its_directory_and_by_its_name(here):
    write(here)
    for named in ("imagined", "runs/imagined", str(here / "runs" / "imagined")):
        result = rewardtune("status", named)
        assert result.exit_code == 0, result.output
        assert "imagined: training, step 30 of 1000, 0.5 steps/s" in result.output


def test_an_unknown_run_is_refused_with_those_that_are_there(here):
    write(here, "one")
    write(here, "two")
    result = rewardtune("status", "three")
    assert result.exit_code == 1
    assert "runs with a status here: one, two" in result.output


def test_without_a_run_all_are_listed(here):
    assert rewardtune("status").output.strip() == "no runs"
    write(here, "busy", busy={"learner": 0.99, "sampler": 0.3, "reward": 0.2})
    write(here, "done", state="finished", states=OVER)
    lines = rewardtune("status").output
    assert "busy" in lines
    assert "finished" in lines
    assert "the learner is" in lines
    listed = json.loads(rewardtune("status", "--json").output)
    assert [status["run"] for status in listed] == ["busy", "done"]


def test_a_run_that_is_removed_while_all_are_listed_is_left_out(here, monkeypatch):
    write(here, "first")
    write(here, "second")
    read = status_command.read_status

    def remove_and_read(directory):
        if directory.name == "first":
            shutil.rmtree(directory)
        return read(directory)

    monkeypatch.setattr(status_command, "read_status", remove_and_read)
    listed = json.loads(rewardtune("status", "--json").output)
    assert [status["run"] for status in listed] == ["second"]


class Cluster:
    """Ray with an actor for each name; what its status calls answer, or the error of the call."""

    def __init__(self, answers):
        self.answers = answers

    def list_named_actors(self, all_namespaces):
        return [{"name": f"{name}/targets", "namespace": "n"} for name in self.answers]

    def get_actor(self, name, namespace):
        name = name.split("/")[0]
        if name == "gone":
            raise ValueError(f"Failed to look up actor with name {name!r}")
        call = types.SimpleNamespace(remote=lambda: self.answers[name])
        return types.SimpleNamespace(status=call)

    def get(self, answer, timeout):
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_cluster_is_listed_while_runs_of_it_begin_end_and_do_not_answer(here, monkeypatch):
    told = Imagined().status() | {"run": "told", "bottleneck": None}
    away = ActorUnavailableError("restarting", b"a" * 16)
    answers = {"ended": RayActorError(), "gone": None, "new": {}, "restarting": away}
    ray = Cluster(answers | {"stopped": GetTimeoutError("not within 20 s"), "told": told})
    monkeypatch.setattr(targets, "ray", ray)
    monkeypatch.setattr(targets, "list_named_actors", ray.list_named_actors)
    monkeypatch.setattr(targets, "join_cluster", lambda address: None)
    listed = json.loads(rewardtune("status", "--address", "head:1", "--json").output)
    assert [(s["run"], s["state"]) for s in listed] == [
        ("new", "starting"),
        ("restarting", "not answering"),
        ("stopped", "not answering"),
        ("told", "training"),
    ]
    text = rewardtune("status", "--address", "head:1")
    assert text.exit_code == 0, text.output
    assert "starting" in text.output
    one = rewardtune("status", "new", "--address", "head:1")
    assert one.exit_code == 1
    assert "run new is starting" in one.output
    for name in ("restarting", "stopped"):
        one = rewardtune("status", name, "--address", "head:1")
        assert one.exit_code == 1
        assert f"run {name} does not answer" in one.output


def test_watching_begins_with_the_first_status_that_a_run_tells(monkeypatch):
    monkeypatch.setattr(status_command, "LOOK_SECONDS", 0.0)
    over = Imagined(state="finished", states=OVER).status()
    later = [RunStarting("not yet"), RunStarting("not yet"), over]
    assert list(status_command._statuses(answering(*later))) == [over]


def test_watching_outlasts_a_moment_without_an_answer_and_ends_when_it_is_too_long(monkeypatch):
    monkeypatch.setattr(status_command, "LOOK_SECONDS", 0.0)
    silent = RunSilent("restarting")
    training, over = Imagined().status(), Imagined(state="finished", states=OVER).status()
    shown = list(status_command._statuses(answering(training, silent, over)))
    assert shown == [training, training, over]
    ages = itertools.chain([False, False], itertools.repeat(True))
    monkeypatch.setattr(status_command, "is_over", lambda status: next(ages))
    assert list(status_command._statuses(answering(training, silent, silent))) == [training] * 3
    with pytest.raises(RunSilent):
        list(status_command._statuses(answering(silent)))


def answering(*answers):
    coming = iter(answers)

    def look():
        answer = next(coming)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return look


def test_a_status_of_text_and_of_json_say_the_same(here):
    write(here, busy={"learner": 0.2, "sampler": 0.3, "reward": 0.93})
    as_json = json.loads(rewardtune("status", "imagined", "--json").output)
    sentence = as_json["bottleneck"]["sentence"]
    assert sentence in " ".join(rewardtune("status", "imagined").output.split())


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_watching_ends_when_the_run_ends_and_prints_no_flood(here, monkeypatch, options):
    monkeypatch.setattr(status_command, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(status_command, "LINE_SECONDS", float("inf"))
    read, looks = status_command.read_status, itertools.count(1)

    def look(directory):
        if next(looks) == 50:
            write(here, state="finished", states=OVER)
        return read(directory)

    write(here)
    monkeypatch.setattr(status_command, "read_status", look)
    result = rewardtune("status", "imagined", "--watch", *options)
    assert result.exit_code == 0, result.output
    assert "finished" in result.output
    if options:
        told = [json.loads(line) for line in result.output.splitlines()]
        assert [status["state"] for status in told] == ["training", "finished"]
    else:
        assert result.output.count("imagined:") == 2  # one line meanwhile, one at the end


def test_watching_a_run_that_failed_ends_with_an_error_code(here):
    write(here, state="failed", states=OVER)
    assert rewardtune("status", "imagined", "--watch").exit_code == 1


def test_watching_goes_on_while_the_evaluator_is_at_work(here):
    workers = {"learner": 1, "sampler": 1, "reward": 1, "evaluator": 1}
    states = OVER | {"evaluator": "running"}
    write(here, state="finished", workers=workers, states=states, behind=1)
    status = json.loads((here / "runs" / "imagined" / "status.json").read_text())
    assert not status_command.is_over(status)


def test_a_local_status_loads_neither_ray_nor_jax_nor_numba(here):
    write(here)
    script = (
        "import sys\nfrom deploy.cli import app\n"
        "app(['status', 'imagined'], standalone_mode=False)\n"
        "heavy = {'ray', 'jax', 'numba', 'torch', 'flax'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_a_large_run_shows_its_roles_and_the_workers_that_need_a_look(here):
    write(here, workers={"learner": 1, "sampler": 30, "reward": 400}, states={"sampler": "pending"})
    output = rewardtune("status", "imagined").output
    assert "400 running" in output
    assert "reward-7" not in output
    assert "sampler-0" in output
    assert len(output.splitlines()) < 60
