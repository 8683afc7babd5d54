"""An analysis shows what was measured: in its file, its picture and its tables, for any task."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from deploy.config import RunConfig
from deploy.report.agreement import measure_agreement
from deploy.report.analysis_figure import write_figure
from deploy.report.analyze import Analysis, analyze_run
from deploy.report.distribution import describe_rewards, summary
from deploy.report.figure import PAGE, PAPER
from deploy.report.judge import PolicyJudge, example_seeds
from deploy.report.measured import Curve, PolicyFigures
from deploy.report.records import find_policies, read_records
from deploy.report.show import show_analysis
from deploy.reward_hacking import RewardHacking
from deploy.run_directory import RunDirectoryError
from protos.trajectory import Abstained, Scored
from tests.unit.test_report import run_directory, write_lines
from vision.tasks.task import Example

HACKING = RewardHacking("points", (0, 40), (80, 120), 0.5, 0.4, 0.01, 1.0, 2.0)
SAMPLES, LENGTH = 3, 2


def policy(key, shift):
    random = np.random.default_rng(0)
    rewards = random.normal(size=(10, SAMPLES)) + shift
    described = describe_rewards(rewards, random.normal(size=(10, SAMPLES)), rewards[:, 0])
    return PolicyFigures(
        key, key, f"{key}.npz", 5, metrics={}, reward=shift, distribution=described
    )


def analysis(**changes):
    steps = list(range(1, 41))
    whole = Analysis(
        run="small",
        task="counting",
        headline="points",
        split="test",
        examples=10,
        of_examples=50,
        policies=[policy("before", 0.0), policy("after", 0.5)],
        training=Curve("reward/mean", steps, [math.sqrt(step) for step in steps]),
        held_out_split="validation",
        held_out=Curve("points", [0, 20, 40], [0.3, 0.4, 0.45]),
        agreement=measure_agreement(
            "reward/mean", steps, np.sqrt(steps), "points", [0, 20, 40], [0.3, 0.4, 0.45]
        ),
    )
    return replace(whole, **changes)


BARE = {"training": None, "held_out": None, "agreement": None, "held_out_split": ""}


def test_the_agreement_is_the_rank_correlation_of_reward_and_metric():
    rewards, steps = [1.0, 2.0, 3.0, 4.0], [1, 10, 20, 30]
    for values, expected in (([0.1, 0.2, 0.3, 0.9], 1.0), ([4, 3, 2, 1], -1.0),
                             ([2, 1, 4, 3], 0.6)):  # fmt: skip
        found = measure_agreement("r", steps, rewards, "m", [0, 10, 20, 30], values)
        assert found.rank_correlation == pytest.approx(expected)
        assert found.rewards == rewards
        assert f"{expected:.2f}" in str(found)


def test_there_is_no_rank_correlation_where_there_is_nothing_to_rank():
    few = measure_agreement("r", [1, 10], [1.0, 2.0], "m", [0, 10], [0.1, 0.2])
    still = measure_agreement("r", [1, 10, 20], [1.0, 2.0, 3.0], "m", [0, 10, 20], [0.1] * 3)
    assert few.rank_correlation is None
    assert still.rank_correlation is None
    assert "no rank correlation" in str(few)
    assert measure_agreement("r", [], [], "m", [0], [1.0]) is None
    assert measure_agreement("r", [1], [1.0], "m", [], []) is None


def test_an_evaluation_that_gave_no_number_is_left_out():
    found = measure_agreement(
        "r", [1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], "m", [1, 2, 3, 4], [1.0, math.nan, 2.0, 3.0]
    )
    assert (found.steps, found.rank_correlation) == ([1, 3, 4], 1.0)


def test_an_evaluation_without_training_steps_near_it_is_left_out():
    found = measure_agreement("r", [1, 2, 11], [1.0, 3.0, 5.0], "m", [0, 10, 20], [0.1, 0.2, 0.3])
    assert (list(found.steps), list(found.rewards)) == ([0, 10], [2.0, 5.0])


def test_the_file_holds_the_figures_and_can_be_json():
    nothing = describe_rewards(np.full((3, 2), np.nan), np.zeros((3, 2)), np.full(3, np.nan))
    policies = [policy("before", 0.0), replace(policy("after", 0.5), distribution=nothing)]
    values = json.loads(json.dumps(analysis(policies=policies).to_json(), allow_nan=False))
    before, after = values["policies"]
    assert len(before["distribution"]["quantiles"]["sample"]) == 101
    assert before["distribution"]["best"] == sorted(before["distribution"]["best"])
    assert after["distribution"]["best"] == [None, None]
    assert values["agreement"]["rank_correlation"] == pytest.approx(1)
    assert values["reward_hacking"] is None
    assert "metrics" not in before


@pytest.mark.parametrize("changes", [{}, BARE, {"reward_hacking": HACKING}])
def test_the_picture_is_drawn_whatever_the_run_has_left(tmp_path, changes):
    path = tmp_path / "analysis.png"
    write_figure(analysis(**changes), path)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["analysis.png"]
    drawn = {tuple(colour) for colour in np.unique(pixels, axis=0)}
    assert {(255, 255, 255), rgb(PAPER.before), rgb(PAPER.after)} <= drawn
    # Nothing is left in the colours that only a page can resolve.
    assert not {rgb(colour) for colour in (PAGE.after, PAGE.line, PAGE.ink)} & drawn


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_a_picture_of_policies_of_which_nothing_was_scored_says_so(tmp_path):
    nothing = describe_rewards(np.full((3, 2), np.nan), np.zeros((3, 2)), np.full(3, np.nan))
    policies = [replace(policy("before", 0.0), distribution=nothing)]
    write_figure(analysis(policies=policies), tmp_path / "analysis.png")
    assert (tmp_path / "analysis.png").stat().st_size > 0
    assert "–" in shown(analysis(policies=policies))


def shown(one):
    console = Console(file=io.StringIO(), width=200)
    show_analysis(console, one)
    return console.file.getvalue()


def cells(text, row):
    line = next(line for line in text.splitlines() if f" {row} " in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_tables_show_before_after_and_the_difference():
    one = analysis()
    text = shown(one)
    before, after = (summary(p.distribution) for p in one.policies)
    for name in ("mean sample", "best of 3", "most likely of 3", "greedy"):
        expected = [f"{before[name]:.3f}".replace("-", "−"), f"{after[name]:.3f}".replace("-", "−")]
        assert cells(text, name) == [name, *expected, "+0.500"]
    for row in ("one sample, 5 %", "best of 3 samples, 50 %", "most likely of 3 samples, 95 %"):
        assert cells(text, row)[-1] == "+0.500"
    assert "rank correlation of reward/mean with points over 3 evaluations: 1.00" in text
    assert "warning" not in text


def test_reward_hacking_and_what_is_missing_stand_below_the_tables():
    text = shown(analysis(reward_hacking=HACKING, missing=["No final.npz."]))
    assert f"warning: {HACKING}" in text
    assert "No final.npz." in text


def test_an_analysis_without_an_after_has_no_difference():
    text = shown(analysis(policies=[policy("before", 0.0)]))
    assert len(cells(text, "greedy")) == 2


class ToyTask:
    """Knows nothing of boxes: a prediction is the sum of its tokens."""

    def decode(self, example, tokens, logprobs):
        return [int(row.sum()) for row in tokens]


class ToySamples:
    def __init__(self, tokens, logprobs):
        self.tokens, self.logprobs = tokens, logprobs


class ToyEngine:
    """Tokens are made of image and seed alone; notes the shapes that it was asked for."""

    def __init__(self):
        self.batches = []

    def greedy(self, params, images):
        tokens = np.full((len(images), 1, LENGTH), 2)
        return ToySamples(tokens, np.zeros(tokens.shape, np.float32))

    def sample(self, params, images, seeds, count):
        self.batches.append(len(images))
        shape = (count, LENGTH)
        rows = [np.random.default_rng(int(s)).integers(0, 9, shape) for s in seeds]
        tokens = np.stack(rows) + params
        return ToySamples(tokens, -tokens.astype(np.float32))


class ToyReward:
    """The prediction itself; abstains from those above 20."""

    provides = ()

    def score(self, examples, predictions):
        return [Abstained("too much") if p > 20 else Scored(float(p)) for p in predictions]


def toy_config():
    values = {
        "name": "toy",
        "task": {"kind": "detection"},
        "model": {"preset": "tiny"},
        "actors": {"groups_per_block": 4},
    }
    return RunConfig.model_validate(values)


def toy_examples(count):
    return [Example(str(i), np.zeros((2, 2, 3), np.float32), None) for i in range(count)]


def test_any_task_is_sampled_in_blocks_of_one_shape_and_scored_by_its_reward():
    engine = ToyEngine()
    judge = PolicyJudge(ToyTask(), engine, ToyReward(), toy_config(), lambda line: None)
    examples = toy_examples(10)
    predictions, greedy = judge.greedy(None, examples, "toy")
    assert predictions == [4] * 10
    np.testing.assert_array_equal(greedy, [4.0] * 10)
    found = judge.distribution(0, examples, range(10), SAMPLES, greedy, "toy")
    assert engine.batches == [4, 4, 4]
    drawn = [np.random.default_rng(int(s)).integers(0, 9, (SAMPLES, LENGTH)).sum(axis=1)
             for s in example_seeds(0, range(10))]  # fmt: skip
    assert found.best[0] == pytest.approx(np.mean(drawn))
    assert found.best[-1] == pytest.approx(np.mean(np.max(drawn, axis=1)))
    # The likeliest has the smallest sum here: its logprobs are minus its tokens.
    assert found.likeliest[-1] == pytest.approx(np.mean(np.min(drawn, axis=1)))
    assert (found.samples, found.examples, found.unscored, found.greedy) == (3, 10, 0, 4.0)
    abstaining = judge.distribution(11, examples, range(10), SAMPLES, greedy, "toy")
    assert abstaining.unscored == 10 * SAMPLES


def test_why_there_is_no_reward_is_told_once(caplog):
    class Broken:
        provides = ()

        def score(self, examples, predictions):
            raise KeyError("no such label")

    judge = PolicyJudge(ToyTask(), ToyEngine(), Broken(), toy_config(), lambda line: None)
    _, greedy = judge.greedy(None, toy_examples(3), "toy")
    assert np.isnan(greedy).all()
    (told,) = [r.getMessage() for r in caplog.records if "no reward" in r.getMessage()]
    assert "no such label" in told


def test_an_example_has_its_seed_whatever_else_is_sampled():
    some, all_of_them = example_seeds(3, [2, 17, 5]), example_seeds(3, range(30))
    np.testing.assert_array_equal(some, all_of_them[[2, 17, 5]])
    assert len(set(all_of_them)) == 30
    assert set(example_seeds(4, range(30))).isdisjoint(all_of_them)
    assert example_seeds(0, []).shape == (0,)


def test_evaluations_on_other_examples_are_not_mixed_with_the_last(tmp_path):
    run_directory(tmp_path)
    (tmp_path / "best.npz").touch()
    write_lines(tmp_path / "metrics.jsonl", [{"step": 9}])
    lines = [
        {"step": step, "split": "validation", "examples": count, "mAP": value}
        for step, count, value in ((0, 10, 0.9), (5, 100, 0.5), (7, 100, 0.4))
    ]
    write_lines(tmp_path / "evaluations.jsonl", lines)
    records = read_records(tmp_path)
    assert [line["step"] for line in records.evaluations] == [5, 7]
    assert any(sentence.startswith("1 evaluations of an earlier") for sentence in records.missing)
    assert find_policies(records, "mAP")[0][-1].step == 5


def test_a_run_without_rewards_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(toy_config().model_dump(mode="json")))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/total": 1.0}\n')
    with pytest.raises(RunDirectoryError, match=r"has no rewards .*rewardtune report"):
        analyze_run(tmp_path)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="no run here"):
        analyze_run(tmp_path)
