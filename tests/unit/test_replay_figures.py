"""What every backend of the queue tells of those who work for it."""

import pytest

from replay.queue import SEEN_SECONDS, Stage, read_lease_id
from replay.seen import SeenWorkers
from tests.queues import BACKENDS, config


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def queue(request):
    with request.param() as open_queue:
        yield open_queue(config())


def test_the_figures_name_who_holds_leases_and_who_waits_for_some(queue):
    leases = queue.lease("to_sample", 1, None, "s")
    assert queue.lease("to_score", 1, None, "idle") == []
    assert queue.stats().held_by_worker == {"s": 2, "idle": 0}
    queue.complete([(lease.id, b"sampled") for lease in leases])
    assert len(queue.lease("to_score", 1, None, "r")) == 1
    assert queue.stats().held_by_worker == {"s": 0, "idle": 0, "r": 1}


def test_a_lease_tells_by_its_id_what_it_is_of(queue):
    leases = queue.lease("to_sample", 1, None, "s")
    of = [read_lease_id(lease.id) for lease in leases]
    assert of == [(Stage.TO_SAMPLE, 0), (Stage.TO_SAMPLE, 1)]
    queue.complete([(lease.id, b"sampled") for lease in leases])
    (scoring,) = queue.lease("to_score", 1, None, "r")
    assert read_lease_id(scoring.id) == (Stage.TO_SCORE, 0)


def test_workers_that_ask_no_more_are_forgotten_and_names_are_bounded(monkeypatch):
    seen = SeenWorkers()
    seen.asked("a", 0.0)
    seen.asked("b", 1.0)
    seen.asked("a", 2.0)
    assert seen.workers(1.0 + SEEN_SECONDS) == ["b", "a"]
    assert seen.workers(1.5 + SEEN_SECONDS) == ["a"]
    monkeypatch.setattr("replay.seen.MOST", 3)
    for number in range(9):
        seen.asked(str(number), 3.0)
    assert seen.workers(3.0) == ["6", "7", "8"]
