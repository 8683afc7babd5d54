"""A small run's report, measured and opened in Chromium."""

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path
from re import search

import numpy as np
import pytest
import yaml
from PIL import Image

from deploy.config import RunConfig
from deploy.report import write_report
from deploy.report.analyze import analyze_run
from deploy.run_directory import CONFIG_FILE
from vision.models.checkpoint import save_npz
from vision.models.sequence import init_params
from vision.tasks.registry import build_task

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    # Nothing outside the page may be needed to show it.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
STEPS = 40
# Asks the page what it is made of once it is loaded; the answer stands in the dumped DOM.
PROBE = """<script>addEventListener("load", () => { document.body.dataset.probe = JSON.stringify({
  images: [...document.images].map(image => image.naturalWidth),
  figures: [...document.querySelectorAll("svg[role=img]")]
    .map(figure => figure.getBoundingClientRect().height),
  overflow: document.documentElement.scrollWidth - innerWidth,
  fetched: performance.getEntriesByType("resource")
    .map(entry => entry.name).filter(name => !name.startsWith("data:")),
}) })</script>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned run as its files tell it, of untrained policies and scenes of 48 pixels."""
    directory = tmp_path_factory.mktemp("run")
    scenes = {"kind": "scenes", "train": 30, "validation": 5, "test": 12}
    scenes["cache_dir"] = str(directory / "scenes")
    config = RunConfig.model_validate(
        {
            "name": "small",
            "task": {"kind": "detection", "data": scenes, "coordinate_buckets": 48},
            "model": {"preset": "tiny"},
            "initial": str(directory / "initial.npz"),
            "learner": {"steps": STEPS, "groups_per_step": 4},
            "actors": {"groups_per_block": 4},
            "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
        }
    )
    (directory / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    model = config.model.build(build_task(config.task))
    for seed, name in enumerate(("initial", "final", "best")):
        save_npz(directory / f"{name}.npz", init_params(model, seed))
    with (directory / "metrics.jsonl").open("w") as file:
        for step in range(1, STEPS + 1):
            line = {
                "step": step,
                "time": 1.0,
                "reward/mean": step**0.5,
                "policy/entropy": 1 / step,
                "staleness/max": 1.0,
                "seconds/training": 0.2,
                "seconds/waiting": 0.1,
            }
            file.write(json.dumps(line) + "\n")
    with (directory / "evaluations.jsonl").open("w") as file:
        for step, value in ((0, 0.1), (20, 0.3), (40, 0.2)):
            line = {"step": step, "split": "validation", "seconds": 1.5, "mAP": value}
            file.write(json.dumps(line) + "\n")
    workers = [{"name": "sampler", "restarts": 0, "working": 4.0, "waiting": 8.0}]
    (directory / "status.json").write_text(json.dumps({"run": "a run", "workers": workers}))
    return directory


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    """Its report."""
    return write_report(run, pictures=3, samples_per_group=3, sampled_examples=5)


def browse(tmp_path: Path, page: Path, *flags: str) -> str:
    """What Chromium prints for a page."""
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium on the PATH: apt-get install chromium")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_report_of_a_run_has_its_figures(page: Path) -> None:
    figures = json.loads(page.with_name("report.json").read_text())
    assert [policy["key"] for policy in figures["policies"]] == ["before", "after", "best"]
    assert [policy["step"] for policy in figures["policies"]] == [0, STEPS, 20]
    assert figures["missing"] == []
    assert figures["examples"] == 12
    assert len(figures["pictured"]) == 3
    for policy in figures["policies"]:
        distribution = policy["distribution"]
        assert (distribution["samples"], distribution["examples"]) == (3, 5)
        assert distribution["best"] == sorted(distribution["best"])
        assert "mAP" in policy["metrics"]


def test_two_reports_of_a_run_agree(run: Path, page: Path) -> None:
    first = json.loads(page.with_name("report.json").read_text())
    write_report(run, pictures=3, samples_per_group=3, sampled_examples=5)
    second = json.loads(page.with_name("report.json").read_text())
    for figures in (first, second):
        del figures["made"]
    assert first == second


def test_an_analysis_says_what_the_report_says(run: Path, page: Path) -> None:
    report = json.loads(page.with_name("report.json").read_text())
    analyze_run(run, samples=3, examples=5)
    analysis = json.loads((run / "analysis.json").read_text())
    assert [policy["key"] for policy in analysis["policies"]] == ["before", "after", "best"]
    for mine, its in zip(analysis["policies"], report["policies"], strict=True):
        assert mine["step"] == its["step"]
        # Greedy decoding in batches of another shape may differ in the last bit.
        greedy = mine["distribution"].pop("greedy")
        assert greedy == pytest.approx(its["distribution"].pop("greedy"))
        assert mine["distribution"] == its["distribution"]
    for name in ("agreement", "reward_hacking", "headline", "missing"):
        assert analysis[name] == report[name]
    assert analysis["agreement"]["rank_correlation"] == pytest.approx(0.5)  # 0.1, 0.3, 0.2
    assert Image.open(run / "analysis.png").size[0] > 1000


@pytest.mark.parametrize("width", [1200, 500])
def test_chromium_shows_texts_pictures_and_figures(tmp_path: Path, page: Path, width: int) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    dom = browse(tmp_path, probed, f"--window-size={width},1000", "--dump-dom")
    for text in ("mAP on 12 test images", "best on validation", "Reward distribution", "sampler"):
        assert text in dom
    found = search(r'data-probe="([^"]*)"', dom)
    assert found is not None
    seen = json.loads(unescape(found[1]))
    assert len(seen["images"]) == 9
    assert min(seen["images"]) >= 288, "a picture that does not load has no width"
    # Reward and metric, one against the other, three quantile curves, rewards by n, entropy, times.
    assert len(seen["figures"]) == 8
    assert min(seen["figures"]) > 60
    assert seen["overflow"] <= 0, "the page must not scroll sideways"
    assert seen["fetched"] == []


def test_the_page_is_painted(tmp_path: Path, page: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(tmp_path, page, "--window-size=1200,3000", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (3000, 1200, 3)
    colours = len(np.unique(pixels[::2, ::2].reshape(-1, 3), axis=0))
    assert colours > 1000, "photos and figures have many colours; a blank page has few"
    ground = (pixels == pixels[0, 0]).all(axis=-1)
    assert ground.mean() < 0.9
