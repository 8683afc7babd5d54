"""What tokens stand for goes with every checkpoint of a run, and other words are refused."""

import pytest

from deploy.config import RunConfig
from deploy.processes import load_initial
from deploy.runs import run_evaluate, run_pretrain
from learner.checkpoints import CheckpointError
from rewards.facts import differences, task_facts
from vision.models.arrays import CheckpointMismatch
from vision.tasks.registry import build_task

_LINE = "[PAD] [UNK] [CLS] [SEP] [MASK] a red green two three of the left right"
PIECES = _LINE.split()


def run_config(runs, **changes):
    data = {"kind": "caption_scenes", "train": 8, "validation": 4, "test": 4}
    values = {
        "name": "words",
        "runs": str(runs),
        "task": {
            "kind": "captioning",
            "data": data | {"cache_dir": str(runs / "scenes")},
            "tokenizer": "wordpiece",
            "vocabulary": str(runs / "vocab.txt"),
        },
        "model": {"preset": "tiny"},
        "pretrain": {"steps": 2, "batch_size": 4, "optimizer": {"warmup_steps": 1}},
    }
    return RunConfig.model_validate(values | changes)


def write_vocabulary(runs, pieces):
    (runs / "vocab.txt").write_text("\n".join(pieces) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    write_vocabulary(runs, PIECES)
    return runs, run_pretrain(run_config(runs))


def test_other_words_of_the_same_number_are_refused_wherever_a_checkpoint_is_read(trained):
    runs, path = trained
    config = run_config(runs)
    tuned = config.model_copy(update={"initial": path})
    model = config.model.build(build_task(config.task))
    assert "CIDEr" in run_evaluate(config, path, "test")
    assert load_initial(tuned, model, build_task(config.task))
    before = task_facts(build_task(config.task))
    write_vocabulary(runs, [*PIECES[:6], "green", "red", *PIECES[8:]])
    try:
        task = build_task(config.task)
        with pytest.raises(CheckpointMismatch, match="token 6 is 'red' there and 'green' here"):
            run_evaluate(config, path, "test")
        with pytest.raises(CheckpointMismatch, match="token 6 is 'red' there"):
            load_initial(tuned, model, task)
        with pytest.raises(CheckpointMismatch, match="token 6 is 'red' there"):
            load_initial(tuned.model_copy(update={"initial_transfer": True}), model, task)
        with pytest.raises(CheckpointError, match="stand for something else, such as other words"):
            run_pretrain(config)
        assert any(line.startswith("tokens: ") for line in differences(before, task_facts(task)))
    finally:
        write_vocabulary(runs, PIECES)
