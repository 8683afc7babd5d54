"""The examples of the documentation do what the documentation says."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy.checks import check_tune
from deploy.config import RunConfig
from deploy.config_file import ConfigError, read_config
from protos.trajectory import Scored
from rewards.combine import RewardLoadError, load_reward
from rewards.judge import judge_group
from vision.tasks.boxes import Boxes, Detections
from vision.tasks.import_path import ImportPathError
from vision.tasks.registry import OwnTaskConfig, OwnTaskError, build_task, prepare_task
from vision.tasks.task import Example

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.fixture
def beside_the_example(monkeypatch):
    """As if the command were typed in the example's directory."""
    monkeypatch.syspath_prepend(EXAMPLES)
    importlib.invalidate_caches()
    yield
    for module in ("count_reward", "number_task"):
        sys.modules.pop(module, None)


def example(objects: int, crowds: int = 0) -> Example:
    n = objects + crowds
    crowd = np.arange(n) >= objects
    target = Boxes(np.zeros((n, 4), np.int32), np.zeros(n, np.int32), crowd)
    return Example("1", np.zeros((8, 8, 3), np.float32), target)


def prediction(objects: int) -> Detections:
    scores = np.ones(objects, np.float32)
    return Detections(np.zeros((objects, 4), np.int32), np.zeros(objects, np.int32), scores, scores)


def test_the_example_reward_loads_by_its_path_and_counts(beside_the_example):
    reward = load_reward("count_reward:CountReward", None, {})
    outcomes = judge_group(reward, example(3, crowds=2), [prediction(n) for n in (3, 1, 7)])
    assert outcomes == (Scored(0.0), Scored(-2.0), Scored(-4.0))


def test_the_example_reward_takes_its_option(beside_the_example):
    reward = load_reward("count_reward:CountReward", None, {"tolerance": 1})
    assert judge_group(reward, example(3), [prediction(5)]) == (Scored(-1.0),)
    with pytest.raises(RewardLoadError, match="Did you mean 'tolerance'"):
        load_reward("count_reward:CountReward", None, {"tolerence": 1})


def test_the_example_reward_config_resolves_and_passes_the_checks_up_to_its_checkpoint(
    beside_the_example, tmp_path
):
    config = read_config(EXAMPLES / "own_reward.yaml", [], RunConfig)
    small = config.task.model_copy(
        update={
            "data": config.task.data.model_copy(
                update={"train": 16, "validation": 2, "test": 2, "cache_dir": tmp_path}
            )
        }
    )
    config = config.model_copy(
        update={"task": small, "initial": tmp_path / "none.npz", "runs": tmp_path}
    )
    # The reward, the task and the splits are in order: what is missing is the checkpoint alone.
    with pytest.raises(ValueError, match=r"no checkpoint at .*none\.npz"):
        check_tune(config)
    weight = config.learner.reinforce.model_copy(update={"auxiliary_weight": 0.3})
    learner = config.learner.model_copy(update={"reinforce": weight})
    with pytest.raises(ConfigError, match=r"does not provide \['match_iou'\]"):
        check_tune(config.model_copy(update={"learner": learner}))


def test_the_example_of_own_data_resolves():
    config = read_config(EXAMPLES / "own_dataset.yaml", [], RunConfig)
    assert config.task.data.kind == "coco"
    assert config.pretrain is not None
    assert config.rewards is not None


def test_the_example_task_writes_and_reads_its_examples(beside_the_example):
    config = read_config(EXAMPLES / "own_task.yaml", ["task.options.train=8"], RunConfig)
    task = build_task(config.task)
    assert len(task.example_ids("train")) == 8
    allowed = task.allowed_tokens()
    for example_id in task.example_ids("train"):
        example = task.load("train", example_id, None)
        assert example.image.shape == (*task.image_size, 3)
        tokens = task.target_tokens(example, seed=0)
        said = tokens > 0
        assert allowed[said, tokens[said]].all()
        assert task.decode(example, tokens[None], np.zeros((1, 4), np.float32)) == [example.target]


def test_the_example_tasks_reward_is_the_share_of_right_digits(beside_the_example):
    config = read_config(EXAMPLES / "own_task_tune.yaml", [], RunConfig)
    task = build_task(config.task)
    reward = load_reward(config.rewards.terms[0].path, task, {})
    number = Example("train/0", np.zeros((*task.image_size, 3), np.float32), "123")
    outcomes = judge_group(reward, number, ["123", "923", "1", "1234", "12"])
    assert [outcome.reward for outcome in outcomes] == [1, 2 / 3, 1 / 3, 3 / 4, 2 / 3]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("number_task:NumberTusk", {}, "Did you mean 'NumberTask'"),
        ("no_such_module:Task", {}, "cannot import 'no_such_module'"),
        ("number_task:NumberTask", {"trian": 3}, "Did you mean 'train'"),
        (
            "number_task:DigitsReward",
            {"task": None},
            "DigitsReward has no allowed_tokens, ",
        ),
        ("number_task:SIDE", {}, "'SIDE' is a int, not a class"),
    ],
)
def test_a_task_that_cannot_be_had_says_what_would_be_right(
    beside_the_example, kind, options, message
):
    with pytest.raises(ImportPathError, match=message):
        build_task({"kind": kind, "options": options})


def test_a_class_that_is_no_task_is_named_before_its_data_is_prepared(beside_the_example):
    config = OwnTaskConfig(kind="number_task:DigitsReward")
    with pytest.raises(ImportPathError, match="DigitsReward has no prepare; "):
        prepare_task(config, lambda what, done, total: None)


class BrokenTask:
    """Raises where it is made ready, and nothing that the command line knows."""

    def __init__(self, path):
        self.table = {}[path]

    @classmethod
    def prepare(cls, config, progress):
        raise LookupError("no table")


def test_what_an_own_task_raises_is_named_with_its_path(beside_the_example):
    kind = f"{__name__}:BrokenTask"
    with pytest.raises(OwnTaskError, match=rf"task '{kind}' with .*'nowhere'.*KeyError.*test_exa"):
        build_task({"kind": kind, "options": {"path": "nowhere"}})
    with pytest.raises(OwnTaskError, match=rf"task '{kind}', prepare: LookupError: no table"):
        prepare_task(OwnTaskConfig(kind=kind), lambda what, done, total: None)


@pytest.mark.parametrize("example", ["remote_reward.yaml", "human_reward.yaml"])
def test_the_examples_of_remote_rewards_name_options_that_there_are(example):
    config = read_config(EXAMPLES / example, [], RunConfig)
    term = config.rewards.terms[0]
    with pytest.raises(RewardLoadError, match="NO_SUCH_TOKEN"):  # after all options were taken
        load_reward(term.path, None, term.options | {"token_env": "NO_SUCH_TOKEN"})


@pytest.mark.parametrize(
    ("page", "example_file"),
    [
        ("README.md", "count_reward.py"),
        ("docs/own_reward.md", "count_reward.py"),
        ("docs/own_reward.md", "own_reward.yaml"),
        ("docs/own_dataset.md", "own_dataset.yaml"),
        ("docs/own_task.md", "number_task.py"),
        ("docs/own_task.md", "own_task.yaml"),
        ("docs/own_task.md", "own_task_tune.yaml"),
        ("docs/remote_rewards.md", "remote_reward.yaml"),
        ("docs/remote_rewards.md", "human_reward.yaml"),
    ],
)
def test_pages_show_the_example_files_as_they_are(page, example_file):
    assert (EXAMPLES / example_file).read_text() in (REPOSITORY / page).read_text()


def test_the_readmes_dataset_config_resolves(tmp_path):
    text = (REPOSITORY / "README.md").read_text()
    path = tmp_path / "my_detector.yaml"
    path.write_text(text.split("```yaml\n")[1].partition("```")[0])
    assert read_config(path, [], RunConfig).name == "my_detector"


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_yaml_blocks_of_the_pages_are_yaml():
    blocks = [
        block.partition("```")[0]
        for page in PAGES
        for block in page.read_text().split("```yaml\n")[1:]
    ]
    assert len(blocks) >= 3
    for block in blocks:
        included = re.fullmatch(r'--8<-- "(.+)"', block.strip())
        text = (REPOSITORY / included[1]).read_text() if included else block
        assert isinstance(yaml.safe_load(text), dict)
