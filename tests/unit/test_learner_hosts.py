"""A learner of several hosts trains what one host trains.

The hosts are processes on this machine, their devices are CPUs, and they reach the queue by gRPC.
"""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.learn import check_host
from deploy.processes import ticket_source
from learner.config import TuneConfig
from learner.metrics import read_metrics
from learner.ordinals import read_ordinals
from protos.trajectory import FailureKind, Sampled, Scored, ScoredGroup, Ticket
from replay.queue import QueueClosed
from tests.edges import serving_queue
from tests.ports import free_port
from tests.queues import memory
from vision.tasks.registry import build_task

STEPS = 3
PATIENCE = 300.0


@pytest.fixture(scope="module")
def values(tiny_values):
    optimizer = {"name": "adafactor", "learning_rate": 1e-3}
    learner = {**tiny_values["learner"], "steps": STEPS, "optimizer": optimizer}
    return {**tiny_values, "learner": {**learner, "checkpoint_every": 2, "mismatch_every": 1}}


def scored_group(config: RunConfig, task, ticket: Ticket) -> bytes:
    """Samples and rewards that are a function of the ordinal."""
    noise = np.random.default_rng(ticket.ordinal)
    shape = (config.learner.samples_per_group, task.max_length)
    allowed = np.flatnonzero(task.allowed_tokens()[0])
    sampled = Sampled(
        ticket=ticket,
        tokens=noise.choice(allowed, shape).astype(np.int32),
        logprobs=-noise.random(shape, np.float32),
        policy_version=ticket.policy_version or 0,
        engine="none",
    )
    ious = {
        name: noise.random(size, np.float32) for name, size in task.auxiliary_arrays.items()
    } | {"part": np.float32(ticket.ordinal)}
    outcomes = tuple(Scored(float(noise.random()), ious) for _ in range(shape[0]))
    return ScoredGroup(sampled, outcomes).to_bytes()


@contextmanager
def scoring(config: RunConfig):
    """A queue whose groups are sampled and scored at once; the third one is quarantined."""
    task = build_task(config.task)
    tickets = ticket_source(config, task)
    with memory() as open_queue:
        queue = open_queue(config.queue_config())

        def work() -> None:
            while True:
                try:
                    for lease in queue.lease("to_sample", 1, None, "s", 0.5):
                        if lease.ordinal == 2:
                            queue.fail([(lease.id, "an odd one", FailureKind.DATA)])
                        else:
                            queue.complete([(lease.id, b"sampled")])
                    for lease in queue.lease("to_score", 9, None, "r"):
                        ticket = tickets.ticket(lease.ordinal)
                        queue.complete([(lease.id, scored_group(config, task, ticket))])
                except QueueClosed:
                    return

        worker = threading.Thread(target=work)
        worker.start()
        server, service = serving_queue(queue)
        try:
            with server:
                yield server.address, queue
        finally:
            queue.close()
            service.close()
            worker.join(timeout=60)


def start(config: RunConfig, address: str, directory: Path) -> list[subprocess.Popen]:
    coordinator = f"127.0.0.1:{free_port()}"
    flags = f"--xla_force_host_platform_device_count={config.learner.devices}"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    settings = {
        "config": config.model_dump(mode="json"),
        "queue": address,
        "coordinator": coordinator,
        "directory": str(directory),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.learner_host", json.dumps(settings | {"index": index})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(config.learner.hosts)
    ]


def trained(values, directory: Path, **learner) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The metrics of a run's steps, and its final parameters."""
    config = RunConfig.model_validate({**values, "learner": {**values["learner"], **learner}})
    with scoring(config) as (address, queue):
        processes = start(config, address, directory)
        for process in processes:
            out, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, errors[:6000]
            assert json.loads(out.splitlines()[-1])["state"] == "finished"
        stats = queue.stats()
    assert (stats.acked, stats.redelivered, stats.expired) == (STEPS * 4, 0, 0)
    with np.load(directory / "final.npz") as file:
        return list(read_metrics(directory)), dict(file)


@pytest.fixture(scope="module")
def alone(values, tmp_path_factory):
    return trained(values, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("shards", [1, 2], ids=["plain", "sharded"])
def test_two_hosts_train_what_one_does(values, alone, tmp_path, shards):
    metrics, final = trained(values, tmp_path, hosts=2, shards=shards)
    expected, expected_final = alone
    assert len(metrics) == len(expected) == STEPS
    for step, wanted in zip(metrics, expected, strict=True):
        assert step.keys() == wanted.keys()
        assert "mismatch/mean" in step
        # Of groups that lag host 0 measures its own, unless a copy of the parameters spans hosts.
        apart = () if shards > 1 or step["step"] == 1 else ("mismatch/",)
        for name in step.keys() - {"time"}:
            if not name.startswith(("seconds/", *apart)):
                assert step[name] == pytest.approx(wanted[name], rel=2e-4, abs=2e-5), name
    # What the hosts tell each other covers all of them.
    assert [step["groups/quarantined"] for step in metrics] == [1, 0, 0]
    assert [step["reward/part"] for step in metrics] == [4 / 3, 5.5, 9.5]
    for name, array in final.items():
        if name.endswith("key/bias"):  # softmax is blind to it: its gradient is rounding alone
            continue
        np.testing.assert_allclose(array, expected_final[name], atol=2e-4, err_msg=name)


def test_two_hosts_in_async_mode_train_every_group_once(values, tmp_path):
    replay = {"mode": "async", "max_policy_lag": STEPS}
    metrics, _ = trained({**values, "replay": replay}, tmp_path, hosts=2)
    assert [step["step"] for step in metrics] == list(range(1, STEPS + 1))
    told = [o for step in read_ordinals(tmp_path) for o in (*step.trained, *step.quarantined)]
    assert len(told) == len(set(told)) == STEPS * 4
    assert sum(step["groups/quarantined"] for step in metrics) <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hosts": 3}, r"groups_per_step 4 .* microbatches \* devices \* hosts = 1 \* 1 \* 3"),
        ({"hosts": 2, "shards": 4}, "shards 4 must divide devices 1 . hosts 2"),
    ],
)
def test_hosts_that_cannot_share_a_step_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        TuneConfig(groups_per_step=4, **changes)


def test_a_host_outside_says_which_it_is_and_where_the_first_one_is(values):
    learner = {**values["learner"], "hosts": 2}
    config = RunConfig.model_validate({**values, "learner": learner})
    with pytest.raises(ConfigError, match=r"--host 2: learner.hosts is 2, .* 0 \.\. 1"):
        check_host(config, 2, "somewhere:1")
    with pytest.raises(ConfigError, match="--coordinator"):
        check_host(config, 1, None)
    check_host(config, 1, "somewhere:1")
