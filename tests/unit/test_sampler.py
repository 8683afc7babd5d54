"""The sampler on a real queue: what it cannot load costs its own groups, by whose fault it is."""

import errno
import time
from http.client import RemoteDisconnected

import numpy as np
import pytest

from actors import sampler
from actors.engine import Samples
from actors.sampler import Sampler
from protos.trajectory import FailureKind, PolicyNotHeld, Sampled, failure_kind
from replay import pulling
from replay.config import QueueConfig
from replay.lease_keeper import LeaseKeeper
from replay.queue import Stage
from replay.tickets import TicketSource
from tests.unit.test_reward_worker import GROUPS, LENGTH, LONG, SAMPLES, WAIT, ThreadedQueue
from vision.data.images import ImageError
from vision.tasks.task import Example

DELIVERIES = 2


class ImageTask:
    """An example's image is its id; on chosen examples loading raises what is left of `odd`."""

    image_size = (1, 1)

    def __init__(self, odd):
        self.odd = odd

    def load(self, split, example_id, augmentation_seed):
        if self.odd.get(example_id):
            raise self.odd[example_id].pop(0)
        return Example(example_id, np.full((1, 1, 3), float(example_id), np.float32), None)


class ToyEngine:
    """Every token is the image's value."""

    def sample(self, params, images, seeds, samples_per_group):
        values = images[:, 0, 0, 0].astype(np.int32)
        tokens = np.broadcast_to(values[:, None, None], (len(images), samples_per_group, LENGTH))
        lengths = np.full(tokens.shape[:2], LENGTH, np.int32)
        return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sampler, "LOAD_SECONDS", 0.05)
    monkeypatch.setattr(pulling, "RETRY_SECONDS", 0.02)


def tickets():
    return TicketSource(0, [str(n) for n in range(GROUPS)], "ordered", 0, GROUPS)


def example_of(ordinal):
    return tickets().ticket(ordinal).example_id


def run(odd, load_weights=lambda version: (0, {}), lives=1):
    """Samples until the learner has the step: ordinal -> its tokens' value, or its reasons.

    A sampler that ends is started anew, as often as it has lives.
    """
    config = QueueConfig(
        groups_per_step=GROUPS,
        block=GROUPS,
        max_deliveries=DELIVERIES,
        sample_ttl=LONG,
        total_groups=GROUPS,
    )
    queue = ThreadedQueue(config)
    keeper = LeaseKeeper(queue, LONG, LONG, on_stuck=pytest.fail)
    sampler = Sampler(
        ImageTask(odd),
        ToyEngine(),
        "toy",
        queue,
        keeper,
        load_weights,
        tickets().ticket,
        "sampler-0",
        GROUPS,
        SAMPLES,
    )
    try:
        while leases := queue.lease(Stage.TO_SAMPLE, 1, None, "sampler-0"):
            try:
                sampler._work(leases)
            except Exception as error:
                lives -= 1
                if not lives:
                    raise
                queue.release_worker("sampler-0", str(error))  # as whoever starts it anew does
        found = {
            lease.ordinal: int(Sampled.from_bytes(lease.payload).tokens[0, 0])
            for lease in queue.lease(Stage.TO_SCORE, GROUPS, None, "reward-0")
        }
        return found | {lost.ordinal: lost.reasons for lost in queue.quarantine()}
    finally:
        keeper.close()
        queue.end()


def expected():
    return {ordinal: int(example_of(ordinal)) for ordinal in range(GROUPS)}


def test_an_example_that_cannot_be_decoded_is_quarantined_at_once():
    ill = 1
    found = run({example_of(ill): [ImageError("cannot read image file a.png: truncated")] * 9})
    (reason,) = found[ill]
    assert "truncated" in reason
    assert found | {ill: expected()[ill]} == expected()


@pytest.mark.parametrize(
    "error", [MemoryError("1 GB"), OSError(errno.EIO, "Input/output error", "a.png")]
)
def test_what_the_machine_refuses_is_tried_again_before_quarantine(error):
    ill = 2
    found = run({example_of(ill): [error] * 100})
    assert len(found[ill]) == DELIVERIES
    assert all(type(error).__name__ in reason for reason in found[ill])
    assert found | {ill: expected()[ill]} == expected()
    assert run({example_of(ill): [error]}) == expected()  # it was once, and is over


def test_a_file_system_that_comes_back_costs_no_delivery(monkeypatch):
    monkeypatch.setattr(sampler, "LOAD_SECONDS", WAIT)
    away = {str(n): [OSError(errno.ESTALE, "Stale file handle")] * 3 for n in range(GROUPS)}
    assert run(away) == expected()


def test_a_policy_that_is_not_held_is_waited_for_and_other_lookups_are_not():
    answers = [PolicyNotHeld("version 0 is not held"), (0, {})]

    def load(version):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert run({}, load) == expected()
    answers[:] = [KeyError("decoder"), (0, {})]
    with pytest.raises(KeyError, match="decoder"):
        run({}, load)


def test_a_policy_that_cannot_be_had_costs_a_block_no_delivery():
    answers = [RuntimeError("the weight store does not answer")] * (DELIVERIES + 1)

    def load(version):
        if answers:
            raise answers.pop()
        return 0, {}

    assert run({}, load, lives=DELIVERIES + 2) == expected()


def test_a_store_that_is_filled_anew_is_waited_for_longer_than_a_file_system():
    empty_until = time.monotonic() + 10 * sampler.LOAD_SECONDS

    def load(version):
        if time.monotonic() < empty_until:
            raise PolicyNotHeld("there are []")
        return 0, {}

    assert run({}, load) == expected()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), FailureKind.INFRASTRUCTURE),
        (PermissionError(errno.EACCES, "Permission denied"), FailureKind.INFRASTRUCTURE),
        (RemoteDisconnected("closed without response"), FailureKind.INFRASTRUCTURE),
        (TimeoutError("timed out"), FailureKind.INFRASTRUCTURE),
        (FileNotFoundError(errno.ENOENT, "No such file"), FailureKind.DATA),
        (OSError("image file is truncated"), FailureKind.DATA),
        (KeyError("annotation"), FailureKind.DATA),
    ],
)
def test_an_error_is_of_the_machine_or_of_the_data(error, kind):
    assert failure_kind(error) is kind
