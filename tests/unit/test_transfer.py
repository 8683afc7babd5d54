"""A checkpoint of other classes and another image size as a start."""

import numpy as np
import pytest

from vision.models.checkpoint import CheckpointError, CheckpointMismatch, save_npz
from vision.models.presets import model_config
from vision.models.sequence import init_params
from vision.models.transfer import transfer_npz

BUCKETS = 20
COORDINATES = (3, BUCKETS + 1)
SHARED = 3 + BUCKETS + 1


def config(classes: int, side: int, **overrides):
    return model_config(
        "tiny",
        vocabulary_size=SHARED + classes,
        max_length=12,
        image_size=(side, side),
        ordered_tokens=COORDINATES,
        **overrides,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    params = init_params(config(classes=7, side=16), seed=1)
    path = tmp_path_factory.mktemp("transfer") / "trained.npz"
    save_npz(path, params)
    return path, params


def test_other_classes_start_anew_and_everything_else_is_taken_over(checkpoint):
    path, trained = checkpoint
    model = config(classes=4, side=32)
    fresh, params = init_params(model, seed=5), transfer_npz(path, model, seed=5)
    kernel = params["decoder"]["LogitsDense"]["kernel"]
    embedding = params["decoder"]["EmbedTargets"]["embedding"]
    assert kernel.shape[1] == embedding.shape[0] == SHARED + 4
    np.testing.assert_array_equal(
        kernel[:, :SHARED], trained["decoder"]["LogitsDense"]["kernel"][:, :SHARED]
    )
    np.testing.assert_array_equal(
        kernel[:, SHARED:], fresh["decoder"]["LogitsDense"]["kernel"][:, SHARED:]
    )
    np.testing.assert_array_equal(
        embedding[SHARED:], fresh["decoder"]["EmbedTargets"]["embedding"][SHARED:]
    )
    before, after = trained["pos_embedding_encoder"], params["pos_embedding_encoder"]
    assert (before.shape[1], after.shape[1]) == (4, 16)
    # The corners of the finer grid lie beyond the centres of the coarser: their values are held.
    np.testing.assert_allclose(after[0, [0, 3, 12, 15]], before[0, [0, 1, 2, 3]])
    layer = "encoderblock_1"
    np.testing.assert_array_equal(
        params["encoder"][layer]["LayerNorm_0"]["scale"],
        trained["encoder"][layer]["LayerNorm_0"]["scale"],
    )


@pytest.mark.parametrize(
    ("overrides", "parameter"),
    [
        ({"encoder": {"width": 32}}, "EmbedPatches"),
        ({"decoder": {"width": 32}}, "decoder"),
        ({"decoder": {"depth": 3}}, "EncDecBlock2"),
    ],
)
def test_another_model_is_refused_by_the_name_of_a_parameter(checkpoint, overrides, parameter):
    path, _ = checkpoint
    with pytest.raises(CheckpointMismatch, match=parameter):
        transfer_npz(path, config(classes=4, side=16, **overrides), seed=0)


def test_more_coordinates_than_the_checkpoint_has_tokens_are_refused(checkpoint):
    path, _ = checkpoint
    model = model_config(
        "tiny", vocabulary_size=104, max_length=12, image_size=(16, 16), ordered_tokens=(3, 100)
    )
    with pytest.raises(CheckpointMismatch, match=r"decoder/.*only classes and image size"):
        transfer_npz(path, model, seed=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.npz"):
        transfer_npz(tmp_path / "gone.npz", config(classes=1, side=16), seed=0)


def test_words_that_are_all_taken_over_must_be_the_same(tmp_path):
    model = model_config("tiny", vocabulary_size=5, max_length=4, image_size=(16, 16))
    path, words = tmp_path / "words.npz", ["", "", "unk", "a", "cat"]
    save_npz(path, init_params(model, 0), token_names=words)
    assert transfer_npz(path, model, 0, words)
    with pytest.raises(CheckpointMismatch, match="token 4 is 'cat' there and 'dog' here"):
        transfer_npz(path, model, 0, [*words[:4], "dog"])
