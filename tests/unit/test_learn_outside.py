"""A learner outside of Ray does not take a run at work back to its first step by accident."""

import numpy as np
import pytest

from deploy.config_file import ConfigError
from deploy.learn import check_goes_on
from learner.packed_weights import pack_weights
from tests.edges import MemoryWeights
from tests.queues import advance, memory
from tests.unit.test_learner_queue import settings


def publish(store, version):
    packed = pack_weights(version, {"w": np.zeros(2, np.float32)}, "float32")
    store.publish_packed(*packed, last=False, epoch=None)


@pytest.mark.parametrize("by", ["frontier", "version"])
def test_a_run_that_was_trained_is_not_begun_anew_without_its_checkpoints(tmp_path, by):
    with memory() as open_queue:
        queue, store = open_queue(settings()), MemoryWeights()
        check_goes_on(tmp_path, queue, store)
        publish(store, 0)
        check_goes_on(tmp_path, queue, store)
        if by == "version":
            publish(store, 1)
            said = "0 groups trained and its newest policy is 1"
        else:
            for stage in ("to_sample", "to_score"):
                advance(queue, stage, 2)
            queue.ack([0])
            said = "1 groups trained and its newest policy is 0"
        (tmp_path / "checkpoints").mkdir()  # made, and left before the first one was whole
        with pytest.raises(ConfigError, match=said):
            check_goes_on(tmp_path, queue, store)
        (tmp_path / "checkpoints" / "7").mkdir()
        check_goes_on(tmp_path, queue, store)
