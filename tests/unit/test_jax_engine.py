"""The JAX engine's own: a compiled loop that goes no further than it must."""

from pathlib import Path

import jax
import numpy as np
import pytest

from actors.jax_engine import JaxEngine
from vision.models.checkpoint import load_npz
from vision.models.presets import model_config
from vision.models.sequence import SequenceModel

TINY = model_config("tiny", vocabulary_size=65, max_length=16, image_size=(32, 32))
NO_PAD = np.tile(np.arange(65) > 0, (16, 1))
END = 7


def test_the_loop_ends_when_every_sequence_has(golden: Path) -> None:
    """A NaN that position 5 alone would meet is never met when all have ended before."""
    params = jax.tree.map(np.array, load_npz(golden / "uvim_tiny_stage2.npz", TINY))
    images = np.zeros((4, 32, 32, 3), np.float32)
    params["decoder"]["LogitsDense"]["bias"][END] = 100.0
    params["pos_embedding_decoder"][:, 5:] = np.nan
    steps = []
    model_step = SequenceModel.decode_step

    def counted(self: SequenceModel, tokens: jax.Array, position: jax.Array, *rest: object):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        return model_step(self, tokens, position, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceModel, "decode_step", counted)
        samples = JaxEngine(TINY, NO_PAD, END).sample(
            params, images, np.arange(4, dtype=np.uint64), 2
        )
        jax.effects_barrier()
    assert steps == [0]
    assert (samples.lengths == 1).all()
    assert np.isfinite(samples.logprobs).all()
