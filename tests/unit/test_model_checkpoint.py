"""Parameters survive a file; what does not fit says so, and what would."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vision.models.checkpoint import (
    CheckpointError,
    CheckpointMismatch,
    check_token_names,
    load_encoder_npz,
    load_npz,
    save_npz,
)
from vision.models.config import ModelConfig
from vision.models.presets import model_config
from vision.models.resample import ResampleError, resample_positions
from vision.models.sequence import abstract_params, init_params

TINY = model_config("tiny", vocabulary_size=65, max_length=16, image_size=(32, 32))


def _flat(params: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.device_get(init_params(TINY, 0))


@pytest.mark.parametrize(
    ("dtype", "relative"), [("float32", 0), ("bfloat16", 2**-8), ("float16", 2**-10)]
)
def test_saved_parameters_come_back_within_the_rounding_of_their_type(
    tmp_path: Path, params: dict, dtype: str, relative: float
) -> None:
    save_npz(tmp_path / "a.npz", params, dtype)
    loaded = _flat(load_npz(tmp_path / "a.npz", TINY))
    for name, value in _flat(params).items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_allclose(loaded[name], value, rtol=relative, atol=1e-7 * (relative > 0))
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2}
    numbers = sum(value.size for value in _flat(params).values())
    assert os.path.getsize(tmp_path / "a.npz") < sizes[dtype] * numbers + 40_000


def test_the_published_layout_loads_with_and_without_its_prefix(
    golden: Path, tmp_path: Path
) -> None:
    with np.load(golden / "uvim_tiny_stage2.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(
        tmp_path / "bare.npz", **{name.removeprefix("params/"): a for name, a in arrays.items()}
    )
    for path in (golden / "uvim_tiny_stage2.npz", tmp_path / "bare.npz"):
        loaded = _flat(load_npz(path, TINY))
        assert loaded.keys() == {name.removeprefix("params/") for name in arrays}
        for name, value in loaded.items():
            np.testing.assert_array_equal(value, arrays["params/" + name])


def test_exported_names_and_shapes_are_the_published_ones(
    golden: Path, tmp_path: Path, params: dict
) -> None:
    save_npz(tmp_path / "a.npz", params)
    with np.load(tmp_path / "a.npz") as ours, np.load(golden / "uvim_tiny_stage2.npz") as theirs:
        assert {n: ours[n].shape for n in ours.files} == {n: theirs[n].shape for n in theirs.files}


@pytest.mark.parametrize(
    ("changed", "parameter", "remedy"),
    [
        (replace(TINY, vocabulary_size=70), "decoder/EmbedTargets/embedding", "vocabulary"),
        (replace(TINY, image_size=(48, 32)), "pos_embedding_encoder", "image_size"),
        (replace(TINY, max_length=20), "pos_embedding_decoder", "max_length"),
        (
            replace(TINY, encoder=replace(TINY.encoder, mlp_dim=64)),
            "encoder/encoderblock_0",
            "mlp_dim",
        ),
        (replace(TINY, patch_size=16, image_size=(64, 64)), "EmbedPatches/kernel", "patch_size"),
    ],
)
def test_a_checkpoint_of_another_shape_names_parameter_shapes_and_remedy(
    tmp_path: Path, params: dict, changed: ModelConfig, parameter: str, remedy: str
) -> None:
    save_npz(tmp_path / "a.npz", params)
    with pytest.raises(CheckpointMismatch) as caught:
        load_npz(tmp_path / "a.npz", changed)
    message = str(caught.value)
    assert str(tmp_path / "a.npz") in message
    assert remedy in message
    needed = flatten_dict(abstract_params(changed), sep="/")
    named = [n for n in needed if n.startswith(parameter) and f"{n} " in message]
    assert len(named) == 1
    assert str(_flat(params)[named[0]].shape) in message
    assert str(tuple(needed[named[0]].shape)) in message


@pytest.mark.parametrize(
    ("changed", "verb"),
    [
        (
            replace(TINY, decoder=replace(TINY.decoder, depth=3)),
            "lacks parameter decoder/EncDecBlock2",
        ),
        (
            replace(TINY, encoder=replace(TINY.encoder, depth=1)),
            "has parameter encoder/encoderblock_1",
        ),
        (replace(TINY, stem="conv"), "lacks parameter EmbedPatches/stem_0"),
    ],
)
def test_a_checkpoint_of_another_depth_or_stem_names_what_lacks_or_is_left_over(
    tmp_path: Path, params: dict, changed: ModelConfig, verb: str
) -> None:
    save_npz(tmp_path / "a.npz", params)
    with pytest.raises(CheckpointMismatch, match=verb):
        load_npz(tmp_path / "a.npz", changed)


@pytest.mark.parametrize("kept", [0, 10, 1000, 200_000])
def test_a_truncated_file_is_named(tmp_path: Path, params: dict, kept: int) -> None:
    save_npz(tmp_path / "a.npz", params)
    whole = (tmp_path / "a.npz").read_bytes()
    assert kept < len(whole)
    (tmp_path / "cut.npz").write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.npz"):
        load_npz(tmp_path / "cut.npz", TINY)


def test_a_damaged_array_is_named(tmp_path: Path, params: dict) -> None:
    save_npz(tmp_path / "a.npz", params)
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "bad.npz").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"bad\.npz"):
        load_npz(tmp_path / "bad.npz", TINY)


NAMES = ["", "", *(f"wört{number}" for number in range(63))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_token_names_are_kept_beside_the_parameters(
    tmp_path: Path, params: dict, dtype: str
) -> None:
    save_npz(tmp_path / "a.npz", params, dtype, NAMES)
    for expected in (NAMES, tuple(NAMES), None):
        assert _flat(load_npz(tmp_path / "a.npz", TINY, expected)).keys() == _flat(params).keys()
    with pytest.raises(CheckpointMismatch, match=r"a\.npz.*token 2 is 'wört0' there and 'wört1'"):
        load_npz(tmp_path / "a.npz", TINY, ["", "", "wört1", "wört0", *NAMES[4:]])
    assert "decoder" not in load_encoder_npz(tmp_path / "a.npz", TINY)


def test_a_file_without_token_names_is_believed(golden: Path) -> None:
    assert load_npz(golden / "uvim_tiny_stage2.npz", TINY, NAMES)


def test_longer_names_and_an_entry_that_is_no_list_are_refused() -> None:
    stored = np.frombuffer(b'["", "a"]', np.uint8)
    check_token_names("a.npz", stored, ["", "a"])
    with pytest.raises(CheckpointMismatch, match=r"token 2 is None there and 'b' here \(2 and 3"):
        check_token_names("a.npz", stored, ["", "a", "b"])
    with pytest.raises(CheckpointError, match=r"a\.npz: token_names is no JSON list"):
        check_token_names("a.npz", np.frombuffer(b"\xff{", np.uint8), ["", "a"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.npz"):
        load_npz(tmp_path / "nowhere.npz", TINY)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, params: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_npz(tmp_path / "a.npz", params)
    before = (tmp_path / "a.npz").read_bytes()

    def full(file: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_npz(tmp_path / "a.npz", params)
    assert (tmp_path / "a.npz").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, params: dict) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*file/a\.npz"):
        save_npz(tmp_path / "file" / "a.npz", params)


def test_a_value_beyond_half_precision_is_refused(tmp_path: Path, params: dict) -> None:
    params = jax.tree.map(np.array, params)
    params["decoder"]["LogitsDense"]["bias"][3] = 1e6
    with pytest.raises(CheckpointError, match=r"decoder/LogitsDense/bias reaches 1e\+06"):
        save_npz(tmp_path / "a.npz", params, "float16")
    assert os.listdir(tmp_path) == []


def _vit(params: dict, old_names: bool) -> dict[str, np.ndarray]:
    """The encoder as a ViT classifier's file has it, with a class token and a head."""
    arrays = {}
    for name, value in _flat(params).items():
        if name.startswith("EmbedPatches/"):
            arrays["embedding/" + name.removeprefix("EmbedPatches/")] = value
        elif name.startswith("encoder/"):
            name = "Transformer/" + name.removeprefix("encoder/")
            if old_names:
                name = name.replace("LayerNorm_1", "LayerNorm_2").replace(
                    "MlpBlock_0", "MlpBlock_3"
                )
                name = name.replace("Attention_0", "Attention_1")
            arrays[name] = value
    positions = np.concatenate([np.full((1, 1, 64), 9.0), params["pos_embedding_encoder"]], axis=1)
    arrays["Transformer/posembed_input/pos_embedding" if old_names else "pos_embedding"] = positions
    return arrays | {
        "cls": np.ones((1, 1, 64)),
        "head/kernel": np.ones((64, 10)),
        "head/bias": np.ones(10),
    }


@pytest.mark.parametrize("old_names", [False, True])
def test_a_vit_gives_its_encoder_without_class_token_and_head(
    tmp_path: Path, params: dict, old_names: bool
) -> None:
    np.savez(tmp_path / "vit.npz", **_vit(params, old_names))
    loaded = _flat(load_encoder_npz(tmp_path / "vit.npz", TINY))
    expected = {
        n: v for n, v in _flat(params).items() if not n.startswith(("decoder", "pos_embedding_d"))
    }
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_a_vit_of_another_resolution_gets_its_positions_resampled(
    tmp_path: Path, params: dict
) -> None:
    np.savez(tmp_path / "vit.npz", **_vit(params, old_names=False))
    larger = replace(TINY, image_size=(64, 48))
    loaded = load_encoder_npz(tmp_path / "vit.npz", larger)
    assert loaded["pos_embedding_encoder"].shape == (1, 8 * 6, 64)


def test_a_vit_of_another_width_names_the_parameter(tmp_path: Path, params: dict) -> None:
    np.savez(tmp_path / "vit.npz", **_vit(params, old_names=False))
    wider = replace(TINY, encoder=replace(TINY.encoder, width=96))
    with pytest.raises(CheckpointMismatch, match="EmbedPatches/"):
        load_encoder_npz(tmp_path / "vit.npz", wider)


def test_resampled_positions_of_a_plane_lie_on_the_plane() -> None:
    rows, columns = np.meshgrid(np.arange(4), np.arange(4), indexing="ij")
    plane = np.stack([rows, columns, rows + 2 * columns], axis=-1).reshape(1, 16, 3)
    resampled = resample_positions(plane, (8, 4)).reshape(8, 4, 3)
    # Between cell centres a plane stays a plane; beyond the outermost centres the ends are held.
    expected_rows = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(resampled[:, 2, 0], expected_rows, atol=1e-6)
    np.testing.assert_allclose(resampled[3, :, 1], np.arange(4), atol=1e-6)
    np.testing.assert_allclose(
        resampled[..., 2], resampled[..., 0] + 2 * resampled[..., 1], atol=1e-6
    )


def test_positions_of_no_square_grid_are_refused() -> None:
    with pytest.raises(ResampleError, match="15 position embeddings"):
        resample_positions(np.zeros((1, 15, 4)), (4, 4))
