"""The checkpoints that ship are small, fit the presets that name them, and can be made again."""

import numpy as np
import pytest

from checkpoints.make import CONFIGS, HERE, round_to_float16
from deploy.config import RunConfig
from deploy.config_file import PRESETS, read_config
from vision.models.checkpoint import load_npz
from vision.tasks.registry import build_task

TUNINGS = {
    "detection_map": "quickstart_detection",
    "captioning_cider": "quickstart_captioning",
    "colorization_colorfulness": "quickstart_colorization",
    "panoptic_pq": "quickstart_panoptic",
}


def test_every_shipped_checkpoint_is_small_and_made_by_one_command():
    shipped = {path.stem: path.stat().st_size for path in HERE.glob("*.npz")}
    assert set(shipped) == set(CONFIGS)
    assert max(shipped.values()) <= 5e6
    for config in CONFIGS.values():
        assert (PRESETS / f"quickstart/{config}.yaml").is_file()


@pytest.mark.parametrize(("preset", "name"), TUNINGS.items())
def test_a_shipped_checkpoint_fits_the_tuning_that_starts_from_it(preset, name):
    config = read_config(PRESETS / f"quickstart/{preset}.yaml", [], RunConfig)
    task = build_task(config.task)
    assert config.initial is not None
    assert config.initial.stem == name
    params = load_npz(HERE / f"{name}.npz", config.model.build(task))
    assert params["decoder"]["LogitsDense"]["kernel"].shape[-1] == task.vocabulary_size
    if hasattr(task, "stage_one"):
        assert config.task.stage_one.checkpoint.stem == f"{name}_stage_one"
        state = task.stage_one.load()["state"]
        assert state["dictionary"].dtype == np.float32


def test_rounding_keeps_a_dictionarys_state_and_halves_the_rest(tmp_path):
    arrays = {
        "params/a": np.linspace(-1, 1, 7, dtype=np.float32),
        "state/counts": np.array([70_000.5], np.float32),
        "params/number": np.array(3),
    }
    np.savez(tmp_path / "trained.npz", **arrays)
    round_to_float16(tmp_path / "trained.npz", tmp_path / "shipped.npz")
    with np.load(tmp_path / "shipped.npz") as shipped:
        assert shipped["params/a"].dtype == np.float16
        np.testing.assert_array_equal(shipped["params/a"], arrays["params/a"].astype(np.float16))
        np.testing.assert_array_equal(shipped["state/counts"], arrays["state/counts"])
        assert shipped["params/number"].dtype == arrays["params/number"].dtype
