"""The report's figures and its page, from records and a measured run."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy.config import RunConfig
from deploy.report.agreement import measure_agreement
from deploy.report.distribution import chosen_of, describe_rewards
from deploy.report.drawing import running_mean
from deploy.report.measured import Curve, Picture, PictureRow, PolicyFigures, Report, fractions
from deploy.report.page import page, verdict
from deploy.report.pictures import LONGEST_SIDE, data_uri, evenly_spaced
from deploy.report.records import find_policies, read_records
from deploy.report.timings import ProcessTime
from deploy.reward_hacking import RewardHacking
from deploy.run_directory import RunDirectoryError

VOID = {"meta", "img", "br", "path", "use"}


def policy(key: str, accuracy: float, shift: float = 0.0) -> PolicyFigures:
    random = np.random.default_rng(0)
    rewards = random.normal(size=(10, 4)) + shift
    return PolicyFigures(
        key=key,
        label=f"{key} <label>",
        origin=f"{key}.npz",
        step=120,
        metrics={"accuracy": accuracy, "count_per_image": 0.5 + shift, "error": 3.0 - shift},
        reward=1.0 + shift,
        distribution=describe_rewards(rewards, random.normal(size=(10, 4)), rewards[:, 0]),
    )


def measured(**changes: object) -> Report:
    steps = list(range(1, 41))
    curves = [
        Curve("reward/mean", steps, [math.sqrt(step) for step in steps]),
        Curve("policy/entropy", steps, [1 / step for step in steps]),
        Curve("staleness/max", steps, [1.0] * len(steps)),
    ]
    picture = data_uri(np.zeros((8, 8, 3), np.uint8))
    report = Report(
        run="run <name>",
        task="counting",
        headline="accuracy",
        split="test",
        examples=1000,
        of_examples=2000,
        policies=[policy("before", 0.339), policy("after", 0.42, shift=0.5)],
        curves=curves,
        held_out_split="validation",
        held_out=[Curve("accuracy", [0, 20, 40], [0.33, 0.4, 0.41])],
        agreement=measure_agreement(
            curves[0].name, steps, curves[0].values, "accuracy", [0, 20, 40], [0.33, 0.4, 0.41]
        ),
        timings=[
            ProcessTime("learner", {"training": 20.0, "waiting": 5.0}),
            ProcessTime("sampler-0", {"working": 12.0, "waiting": 13.0}, restarts=2),
        ],
        made={"machine": "a test's"},
        settings="name: run\noptions: '<&>'\n",
        pictures=[PictureRow(f"image {i}", [Picture("ground truth", picture)]) for i in range(8)],
    )
    return replace(report, **changes)  # type: ignore[arg-type]


class Elements(HTMLParser):
    """Collects what a page is made of, and fails on tags that do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def whole() -> str:
    """The page of a run that left everything."""
    return page(measured())


def shown_text(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(Elements(text).text))


def test_the_verdict_gives_the_headline_before_and_after() -> None:
    plain = re.sub("<[^>]+>", "", verdict(measured()))
    assert plain == "accuracy on 1,000 test images: 33.9 → 42.0"


def test_the_verdict_does_not_claim_an_after_that_was_not_judged() -> None:
    only = measured(policies=[policy("before", 0.339)])
    assert "no “after” yet" in verdict(only)
    assert "→" not in shown_text(page(only))


def test_the_page_is_well_formed_and_shows_every_section(whole: str) -> None:
    text = shown_text(whole)
    for title in (
        "Before and after",
        "Reward and metric",
        "Pictures",
        "Reward distribution",
        "Training",
        "Time",
        "Settings",
    ):
        assert title in text
    assert "33.9" in text
    assert "+8.1" in text  # points of the accuracy
    assert "first 1,000 of the split's 2,000" in text
    assert "Constant: staleness/max 1" in text
    assert "Counted since the last restart: sampler-0" in text


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(whole: str) -> None:
    elements = Elements(whole).elements
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert "url(http" not in whole
    assert "@import" not in whole


def test_every_image_has_an_alternative_text_and_every_table_its_headers(whole: str) -> None:
    elements = Elements(whole).elements
    images = [attributes for tag, attributes in elements if tag == "img"]
    figures = [attributes for tag, attributes in elements if tag == "svg"]
    assert len(images) == 8
    assert all(attributes["alt"] for attributes in images)
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in figures)
    assert all(attributes.get("scope") for tag, attributes in elements if tag == "th")
    assert sum(tag == "table" for tag, _ in elements) == sum(
        tag == "caption" for tag, _ in elements
    )


def test_names_within_the_page_are_unique(whole: str) -> None:
    names = [a["id"] for _, a in Elements(whole).elements if "id" in a]
    assert len(names) == len(set(names))
    links = [a["xlink:href"] for _, a in Elements(whole).elements if "xlink:href" in a]
    assert {f"#{name}" for name in names} >= set(links)


def test_figures_take_their_colours_from_the_page(whole: str) -> None:
    assert "var(--after)" in whole
    drawn = whole[whole.index("</style>") :]
    assert not re.search(r"#[0-9a-f]{6}\b", drawn), "a fixed colour is unreadable on dark or light"


def test_what_comes_from_the_run_is_escaped() -> None:
    text = page(measured(missing=["no <file>"]))
    assert "<name>" not in text
    assert "<label>" not in text
    assert "&lt;&amp;&gt;" in text
    assert "no &lt;file&gt;" in text


def test_what_is_missing_stands_on_the_page() -> None:
    bare = measured(curves=[], held_out=[], timings=[], pictures=[], missing=["No metrics.jsonl."])
    text = shown_text(page(bare))
    assert "No metrics.jsonl." in text
    assert "Seconds of each process" not in text
    assert "Training" not in text


def test_the_rank_correlation_and_reward_hacking_stand_on_the_page() -> None:
    text = shown_text(page(measured()))
    assert "Rank correlation of reward/mean with accuracy over 3 evaluations: 1.00" in text
    assert "Warning" not in text
    hacking = RewardHacking("accuracy", (0, 40), (80, 120), 0.5, 0.4, 0.01, 1.0, 2.0)
    report = measured(reward_hacking=hacking)
    assert str(hacking) in shown_text(page(report))
    assert report.to_json()["reward_hacking"]["metric_last"] == 0.4


def test_a_run_without_a_reward_has_no_reward_on_its_page() -> None:
    policies = [replace(p, reward=None, distribution=None) for p in measured().policies]
    steps = [50, 100]
    report = measured(policies=policies, curves=[Curve("loss/total", steps, [2.0, 1.0])])
    text = shown_text(page(report))
    assert "Reward distribution" not in text
    assert "Loss and metric" in text


def test_policies_of_which_nothing_was_scored_still_make_a_page() -> None:
    nothing = describe_rewards(np.full((3, 2), np.nan), np.zeros((3, 2)), np.full(3, np.nan))
    policies = [replace(policy(key, 0.3), distribution=nothing, reward=None, unscored=3)
                for key in ("before", "after")]  # fmt: skip
    report = measured(policies=policies)
    assert "Not scored by the reward" in shown_text(page(report))
    assert "NaN" not in json.dumps(report.to_json(), allow_nan=False)


def test_the_figures_as_json_are_those_of_the_page() -> None:
    figures = json.loads(json.dumps(measured().to_json(), allow_nan=False))
    assert figures["policies"][1]["metrics"]["accuracy"] == 0.42
    assert figures["curves"][0]["values"][3] == 2.0
    assert figures["pictured"] == [f"image {i}" for i in range(8)]
    assert "pictures" not in figures


def test_fractions_are_in_per_cent_and_counts_are_not() -> None:
    assert fractions(measured().policies) == {"accuracy"}


def test_best_and_most_likely_of_n_are_means_over_all_choices() -> None:
    random = np.random.default_rng(1)
    rewards, logprobs = random.normal(size=(2, 6, 5))
    for n in range(1, 6):
        for order in (rewards, logprobs):
            brute = [
                rewards[e, max(choice, key=lambda k: order[e, k])]
                for e in range(6)
                for choice in combinations(range(5), n)
            ]
            assert chosen_of(rewards, order, n) == pytest.approx(np.mean(brute))


def test_samples_without_a_reward_are_left_out() -> None:
    rewards = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    logprobs = np.array([[-1.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    described = describe_rewards(rewards, logprobs, np.array([2.0, np.nan]))
    assert described.unscored == 4
    assert described.greedy == 2.0
    assert described.best[:2] == [2.0, 3.0]
    assert described.likeliest[:2] == [2.0, 1.0]
    assert math.isnan(described.best[2])
    assert described.quantiles["best"][0] == 3.0
    assert described.quantiles["likeliest"][-1] == 1.0


def test_pictures_are_evenly_spaced() -> None:
    assert evenly_spaced(4, 1000) == [125, 375, 625, 875]
    assert evenly_spaced(5, 3) == [0, 1, 2]
    assert evenly_spaced(3, 0) == []


def test_large_pictures_are_made_small_enough_for_a_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1400, 900, 3), dtype=np.uint8)
    uri = data_uri(noise)
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 2 * LONGEST_SIDE**2


def test_running_means_keep_a_constant_and_the_length() -> None:
    assert running_mean([2.0] * 37) == [2.0] * 37
    assert running_mean([5.0]) == [5.0]


def run_directory(path: Path, **extra: object) -> Path:
    config = RunConfig.model_validate(
        {"name": "run", "task": {"kind": "detection"}, "model": {"preset": "tiny"}} | extra
    )
    (path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run here"):
        read_records(tmp_path)


def test_a_run_that_has_left_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="nothing to report yet"):
        read_records(run_directory(tmp_path))


def test_a_broken_metrics_line_is_named(tmp_path: Path) -> None:
    run_directory(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_records(tmp_path)


def test_missing_files_are_told_one_by_one(tmp_path: Path) -> None:
    run_directory(tmp_path, rewards={"terms": [{"path": "some:Reward"}]})
    (tmp_path / "best.npz").touch()
    records = read_records(tmp_path)
    policies, missing = find_policies(records, "mAP")
    told = " ".join([*records.missing, *missing])
    for name in ("metrics.jsonl", "held-out evaluations", "status.json", "final.npz"):
        assert name in told
    assert [p.key for p in policies] == ["before", "best"]


def test_an_unfinished_run_is_judged_by_its_newest_checkpoint(tmp_path: Path) -> None:
    run_directory(tmp_path)
    for step in (50, 100):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    policies, missing = find_policies(read_records(tmp_path), "mAP")
    assert [(p.key, p.step) for p in policies] == [("before", 0), ("after", 100)]
    assert "the run has not ended" in missing[0]


@pytest.mark.parametrize(("best_step", "keys"), [(2, ["before", "after"]),
                                                 (1, ["before", "after", "best"])])  # fmt: skip
def test_the_best_policy_is_judged_unless_it_is_the_last(
    tmp_path: Path, best_step: int, keys: list[str]
) -> None:
    run_directory(tmp_path)
    for name in ("final.npz", "best.npz"):
        (tmp_path / name).touch()
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}])
    lines = [{"step": s, "split": "validation", "mAP": float(s == best_step)} for s in (0, 1, 2)]
    write_lines(tmp_path / "evaluations.jsonl", lines)
    policies, missing = find_policies(read_records(tmp_path), "mAP")
    assert [p.key for p in policies] == keys
    assert missing == []


def test_held_out_metrics_of_pretraining_are_found_among_the_others(tmp_path: Path) -> None:
    run_directory(tmp_path)
    write_lines(tmp_path / "metrics.jsonl", [{"step": 5, "validation/mAP": 0.25, "loss/total": 1}])
    assert read_records(tmp_path).evaluations == [{"step": 5, "split": "validation", "mAP": 0.25}]
