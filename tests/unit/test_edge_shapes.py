"""What may be published is known before the run's first publication."""

import numpy as np
import pytest

from deploy.config import RunConfig
from deploy.edges import _shapes
from learner.packed_weights import pack_weights
from tests.edges import MemoryWeights
from vision.models.arrays import flatten
from vision.models.sequence import init_params
from vision.tasks.registry import build_task


@pytest.mark.parametrize("published", [False, True])
def test_shapes_are_of_what_was_published_or_of_the_runs_model(tiny_values, published):
    config, store = RunConfig.model_validate(tiny_values), MemoryWeights()
    params = init_params(config.model.build(build_task(config.task)), seed=0)
    if published:
        params = {"other": np.zeros((2, 3), np.float32)}
        store.publish_packed(*pack_weights(0, params, "float32"), last=False, epoch=None)
    assert _shapes(config, store) == {n: a.shape for n, a in flatten(params).items()}
