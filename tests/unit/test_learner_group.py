"""The hosts of a learner train together or not at all, and fail as one."""

import pytest

from deploy import workers
from deploy.learner_group import LearnerGroup, LearnerHost, resources_of_host
from deploy.workers import WorkerError
from learner.hosts import check_index
from replay.resources import Resources

FAILURES_ALLOWED = 5


class Handle:
    """An actor whose calls are names, and are noted."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, method):
        class Method:
            @staticmethod
            def remote(*arguments):
                self.calls.append((method, *arguments))
                return method

        return Method


@pytest.fixture
def ended(monkeypatch):
    pids = []
    monkeypatch.setattr(workers, "kill_process", lambda where: pids.append(where["pid"]))
    return pids


@pytest.fixture
def hosts():
    group = LearnerGroup()
    hosts = [LearnerHost(f"learner-{index}", None, group, FAILURES_ALLOWED) for index in range(3)]
    for host in hosts:
        host.handle = Handle()
    return hosts


def arrive(host, pid):
    host.asked_where = []
    host.where = {"node": "node", "pid": pid}
    host._run()


def die(host, deaths):
    host.running = None
    host._failed("it died", lambda worker, reason: deaths.append(worker.name))


def test_none_trains_before_all_are_there(hosts):
    for host in hosts[:2]:
        arrive(host, 1)
    assert [host.state for host in hosts] == ["pending"] * 3
    arrive(hosts[2], 3)
    assert [host.state for host in hosts] == ["running"] * 3
    assert hosts[0].handle.calls == [("coordinator",), ("run", 0, "coordinator")]
    assert hosts[2].handle.calls == [("run", 2, "coordinator")]


def test_a_death_ends_the_others_and_is_one_failure(hosts, ended):
    deaths = []
    for pid, host in enumerate(hosts):
        arrive(host, pid)
    die(hosts[1], deaths)
    assert ended == [0, 2]
    arrive(hosts[1], 11)
    assert hosts[1].state == "pending"
    for host in (hosts[0], hosts[2]):
        die(host, deaths)
    assert (ended, deaths) == ([0, 2], ["learner-1", "learner-0", "learner-2"])
    assert len(hosts[0].failures) == 1
    assert [host.restarts for host in hosts] == [1, 1, 1]
    for host in (hosts[0], hosts[2]):
        arrive(host, 12)
    assert [host.state for host in hosts] == ["running"] * 3


def test_a_group_that_fails_again_and_again_ends_the_run(hosts, ended):
    def fail(index):
        for host in hosts:
            arrive(host, 1)
        die(hosts[index], [])
        for host in hosts:
            if host.running is not None:
                die(host, [])

    for number in range(FAILURES_ALLOWED):
        fail(number % 3)
    with pytest.raises(WorkerError, match="failed 6 times"):
        fail(0)


def test_a_host_that_is_lost_when_all_are_done_costs_nothing(hosts, ended):
    for host in hosts:
        arrive(host, 1)
    hosts[1].running, hosts[1].finished = None, {"state": "finished"}
    die(hosts[0], [])
    assert hosts[0].finished == {"state": "finished"}
    assert ended == []


def test_a_host_of_a_tpu_slice_is_placed_on_the_node_of_its_number():
    pool = {"pool": "learner"}
    slice_host = Resources(custom={"TPU": 4}, labels=pool)
    assert [resources_of_host(slice_host, index, 2).labels for index in range(2)] == [
        pool | {"ray.io/tpu-worker-id": "0"},
        pool | {"ray.io/tpu-worker-id": "1"},
    ]
    assert resources_of_host(slice_host, 0, 1) == slice_host
    gpus = Resources(num_gpus=8, labels=pool)
    assert resources_of_host(gpus, 1, 2) == gpus


def test_hosts_that_jax_numbers_otherwise_are_refused():
    check_index(1, 1)
    with pytest.raises(ValueError, match="host 1 is JAX's process 0"):
        check_index(1, 0)
