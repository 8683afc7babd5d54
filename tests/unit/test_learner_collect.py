"""Several hosts of a learner train a group once, whatever becomes of their leases."""

import pytest

from learner.collect import Collector
from learner.hosts import Hosts
from learner.stop import StopRequest
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from tests.queues import memory


class SecondHost(Hosts):
    """Host 1 of 2; what the first one holds is given."""

    def __init__(self, first_holds):
        super().__init__(1, 2)
        self.first_holds = first_holds

    def gather(self, value):
        rows = [(ordinal, None) for ordinal in self.first_holds]
        return [value | {"rows": rows, "missing": 2 - len(rows)}, value]


@pytest.fixture
def queue():
    """Eight groups, all given up: the learner needs no samples of them."""
    with memory() as open_queue:
        queue = open_queue(QueueConfig(groups_per_step=4, block=2, lag=3, mode="async"))
        for lease in queue.lease("to_sample", 4, None, "s"):
            queue.fail([(lease.id, "an odd one", FailureKind.DATA)])
        yield queue


def collected(queue, hosts):
    collector = Collector(queue, hosts, "learner-1", groups_per_step=4, max_staleness=3)
    collector.begin(queue.fence())
    return collector, collector.collect(0, StopRequest())


def test_a_group_that_an_earlier_host_holds_is_given_up(queue):
    _, step = collected(queue, SecondHost(first_holds=[0, 1]))  # whose leases were lost
    assert [group.ordinal for group in step.groups] == [2, 3]
    assert step.ordinals == [0, 1, 2, 3]


def test_a_group_of_the_step_before_is_not_trained_again_before_it_is_acked(queue):
    hosts = SecondHost(first_holds=[2, 3])
    collector, step = collected(queue, hosts)
    assert step.ordinals == [2, 3, 0, 1]
    queue.release_worker("learner-1", "its leases are lost, and the first host has not acked yet")
    hosts.first_holds = [6, 7]
    step = collector.collect(1, StopRequest())
    assert [group.ordinal for group in step.groups] == [4, 5]
