"""`rewardtune pretrain` with a stage_one section, and what is refused before anything trains."""

import json

import pytest
from pydantic import ValidationError

from deploy.checks import check_tune
from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.report import write_report
from deploy.report.analyze import analyze_run
from deploy.run_directory import RunDirectoryError
from deploy.runs import run_pretrain
from vision.models.arrays import CheckpointMismatch
from vision.models.uvim_checkpoint import load_stage_one
from vision.tasks.registry import build_task

STAGE_ONE = {
    "preset": "tiny",
    "codes": 16,
    "tokens": 9,
    "codeword_dim": 8,
}


def run_config(runs, **changes):
    values = {
        "name": "first",
        "runs": str(runs),
        "task": {
            "kind": "panoptic",
            "data": {
                "kind": "panoptic_scenes",
                "train": 16,
                "validation": 4,
                "test": 4,
                "cache_dir": str(runs / "scenes"),
            },
            "stage_one": STAGE_ONE,
        },
        "model": {"preset": "tiny"},
        "stage_one": {
            "steps": 3,
            "batch_size": 4,
            "optimizer": {"name": "adamw", "warmup_steps": 1},
        },
        "rewards": {"terms": [{"path": "rewards.panoptic:PanopticQualityReward"}]},
    }
    return RunConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, run_pretrain(run_config(runs))


def second(runs, path, **changes):
    """A run of stage II on the first one's code words."""
    config = run_config(runs, name="second", stage_one=None, initial=path, pretrain={})
    task = config.task.model_copy(
        update={
            "stage_one": config.task.stage_one.model_copy(update={"checkpoint": path} | changes)
        }
    )
    return config.model_copy(update={"task": task})


def test_a_stage_one_run_leaves_weights_and_its_held_out_metrics(finished):
    runs, path = finished
    assert path == runs / "first" / "final.npz"
    task = build_task(run_config(runs).task)
    load_stage_one(path, task.stage_one.config)
    record = json.loads((path.parent / "evaluation.json").read_text())
    assert record["examples"] == 4
    for name in ("PQ", "loss", "words_used", "perplexity"):
        assert name in record


def test_a_stage_one_run_has_no_policy_to_report_and_says_what_it_has(finished):
    _, path = finished
    for command in (write_report, analyze_run):
        with pytest.raises(RunDirectoryError, match=r"trained stage I.*evaluation\.json.*stage II"):
            command(path.parent)
    assert (path.parent / "evaluation.json").exists()
    assert not (path.parent / "report.html").exists()


def test_a_finished_run_is_not_trained_again(finished):
    runs, path = finished
    before = (path.parent / "metrics.jsonl").read_text()
    assert run_pretrain(run_config(runs)) == path
    # A crash between the last checkpoint and the evaluation's file.
    (path.parent / "evaluation.json").unlink()
    assert run_pretrain(run_config(runs)) == path
    assert (path.parent / "evaluation.json").exists()
    assert (path.parent / "metrics.jsonl").read_text() == before


def test_it_may_start_from_another_stage_one(finished, tmp_path):
    runs, path = finished
    config = run_config(runs, name="continued", initial=str(path))
    assert load_stage_one(run_pretrain(config), build_task(config.task).stage_one.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": 32}, "use the codes"),
        ({"tokens": 16, "patch_size": 12}, "image_size and patch_size|patch_size, width"),
        ({"codeword_dim": 16}, "codeword_dim"),
    ],
)
@pytest.mark.parametrize("command", [run_pretrain, check_tune])
def test_a_stage_one_that_does_not_match_its_stage_two_is_refused(
    finished, change, message, command
):
    runs, path = finished
    with pytest.raises(CheckpointMismatch, match=message):
        command(second(runs, path, **change))
    assert not (runs / "second").exists()


def test_another_image_size_is_refused(finished):
    runs, path = finished
    config = second(runs, path)
    larger = config.task.model_copy(update={"image_size": (96, 96)})
    with pytest.raises(CheckpointMismatch, match="image_size"):
        run_pretrain(config.model_copy(update={"task": larger}))


def test_stage_two_without_a_stage_one_is_refused(finished):
    runs, _ = finished
    config = run_config(runs, name="second", stage_one=None, pretrain={})
    with pytest.raises(ValueError, match=r"stage_one\.checkpoint: missing"):
        run_pretrain(config)


def test_a_run_trains_one_thing(tmp_path):
    with pytest.raises(ValidationError, match="pretrain and stage_one are both set"):
        run_config(tmp_path, pretrain={})
    with pytest.raises(ConfigError, match=r"pretrain: missing \(and stage_one too\)"):
        run_pretrain(run_config(tmp_path, stage_one=None))


def test_a_task_without_code_words_has_no_stage_one(tmp_path):
    scenes = {"kind": "scenes", "train": 8, "validation": 8, "test": 8}
    task = {"kind": "detection", "data": scenes | {"cache_dir": str(tmp_path)}}
    with pytest.raises(ConfigError, match="'detection' is not written in UViM's code words"):
        run_pretrain(run_config(tmp_path, task=task))
