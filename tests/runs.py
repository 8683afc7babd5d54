"""Small runs on a real Ray, which the integration and the fault tests share."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.config import RunConfig
from learner.stop import StopRequest

STEPS = 6


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for the session; every run's actors end with the run."""
    import ray

    repository = str(Path(__file__).resolve().parents[1])
    ray.init(
        "local",  # not a cluster of somebody else on this machine
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        namespace="tests",
        runtime_env={"env_vars": {"PYTHONPATH": repository}},
        # Metrics reach Prometheus this late; 10,000 by default.
        _system_config={"metrics_report_interval_ms": 2000},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config of a run that takes seconds, with an initial checkpoint."""
    directory = tmp_path_factory.mktemp("runs")
    values: dict[str, Any] = {
        "name": "tiny",
        "runs": str(directory),
        "task": {
            "kind": "detection",
            "data": {"kind": "scenes", "train": 64, "validation": 8, "test": 8},
        },
        "model": {"preset": "tiny"},
        "initial": str(directory / "initial.npz"),
        "learner": {
            "steps": STEPS,
            "groups_per_step": 4,
            "samples_per_group": 2,
            "checkpoint_every": 3,
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        },
        # A process that has to wait for a busy machine is not stuck.
        "actors": {"groups_per_block": 2, "lease_seconds": 60, "resources": {"num_cpus": 0.5}},
        "rewards": {
            "terms": [{"path": "tests.odd_rewards:SmoothReward"}],
            "groups_per_lease": 2,
            "deadline_seconds": 300,
            "lease_seconds": 60,
            "resources": {"num_cpus": 0.5},
        },
        "replay": {"mode": "ordered", "policy_lag": 1},
        "evaluation": {"every": 0},
    }
    from vision.models.checkpoint import save_npz
    from vision.models.sequence import init_params
    from vision.tasks.registry import build_task

    config = RunConfig.model_validate(values)
    model = config.model.build(build_task(config.task))
    save_npz(directory / "initial.npz", init_params(model, seed=1))
    return values


@dataclasses.dataclass
class Run:
    """A finished (or stopped) run."""

    config: RunConfig
    result: dict[str, Any]
    statuses: list[Mapping[str, Any]]

    @property
    def directory(self) -> Path:
        return self.config.directory

    def weights(self) -> dict[str, np.ndarray]:
        with np.load(self.directory / "final.npz") as file:
            return dict(file)


def assert_ends_near(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], values: Mapping[str, Any]
) -> None:
    """Two runs of one beginning end in the same place, but for the order of sums."""
    with np.load(values["initial"]) as file:
        initial = dict(file)
    assert ours.keys() == theirs.keys() == initial.keys()
    moved = np.sqrt(sum(np.square(theirs[name] - initial[name]).sum() for name in theirs))
    apart = np.sqrt(sum(np.square(theirs[name] - ours[name]).sum() for name in theirs))
    assert apart < 0.01 * moved


OnStatus = Callable[[Mapping[str, Any], StopRequest], None]


@pytest.fixture
def tune(ray_cluster: None, tiny_values: dict[str, Any]) -> Callable[..., Run]:
    """Runs the tiny config with changes, `tune(name, {'actors.count': 2}, on_status)`."""
    return lambda name, changes=None, on_status=None: run_tiny(
        tiny_values, name, changes, on_status
    )


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: None, tiny_values: dict[str, Any]) -> Run:
    """The run that others must equal: one sampler, one reward worker, no faults."""
    return run_tiny(tiny_values, "undisturbed", None, None)


@pytest.fixture(scope="session")
def two_hosts(ray_cluster: None, tiny_values: dict[str, Any]) -> Run:
    """The same with a learner of two hosts, without faults."""
    return run_tiny(tiny_values, "two-hosts", {"learner.hosts": 2}, None)


def run_tiny(
    values: Mapping[str, Any],
    name: str,
    changes: Mapping[str, Any] | None,
    on_status: OnStatus | None,
) -> Run:
    from deploy.checks import check_tune
    from deploy.controller import Controller
    from deploy.run_directory import open_run_directory

    config = RunConfig.model_validate(changed(values, {"name": name, **(changes or {})}))
    stop = StopRequest()
    statuses: list[Mapping[str, Any]] = []

    def observe(status: Mapping[str, Any]) -> None:
        statuses.append(status)
        if on_status is not None:
            on_status(status, stop)

    task = check_tune(config)
    with open_run_directory(config):
        result = Controller(config, task, observe).run(stop)
    return Run(config, result, statuses)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values with others at some keys, `{"actors.count": 2}`."""
    result = dict(values)
    for key, value in changes.items():
        head, dot, rest = key.partition(".")
        result[head] = changed(result.get(head) or {}, {rest: value}) if dot else value
    return result


def signal_worker(status: Mapping[str, Any], name: str, number: int) -> bool:
    """Signals a running worker or service of a run; whether there was one."""
    for worker in [*status["workers"], *status["services"]]:
        if worker["name"] == name and worker.get("state", "running") == "running" and worker["pid"]:
            try:
                os.kill(worker["pid"], number)
            except ProcessLookupError:  # it died since the status was taken
                return False
            return True
    return False


def wait_until_gone(pids: list[int], seconds: float = 30.0) -> list[int]:
    """The processes that still exist after a while; a long one, since no test is about speed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pids = [pid for pid in pids if _alive(pid)]
        if not pids:
            break
        threading.Event().wait(0.2)
    return pids


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


SIGCONT, SIGKILL, SIGSTOP = signal.SIGCONT, signal.SIGKILL, signal.SIGSTOP
