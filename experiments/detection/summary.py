"""Makes `summary.md` and `curves.svg` of the results that there are.

python -m experiments.detection.summary
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def load() -> dict[str, dict[str, Any]]:
    """The results by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def figures(metrics: dict[str, float]) -> str:
    """mAP / AR@100 in per cent."""
    return f"{100 * metrics['mAP']:.1f} / {100 * metrics['AR100']:.1f}"


def ranked(by_rank: dict[str, dict[str, float]]) -> str:
    """Table cells: ranked by class, by confidence, by their product; boxes an image."""
    cells = [figures(by_rank[rank]) for rank in ("class", "confidence", "product")]
    return " | ".join([*cells, f"{by_rank['class']['boxes_per_image']:.2f}"])


def main_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """The gain on the test split, and its controls."""
    lines = [
        "| test split | by class | by confidence | by product | boxes | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    if before := results.get("before"):
        lines.append(f"| before | {ranked(before['test'])} | |")
        bias = before["best_bias"]
        lines.append(f"| before, end token {bias:+g} | {ranked(before['best_bias_test'])} | |")
    for steps in (800, 2500):
        if likelihood := results.get(f"likelihood_{steps}"):
            for rate, tried in likelihood["rates"].items():
                row = f"maximum likelihood continued, {steps} steps at {rate}"
                lines.append(f"| {row} | {ranked(tried['test'])} | {tried['seconds']:.0f} |")
    for name, result in results.items():
        if re.match(r"(map|recall)_(seed\d|long)$|after_", name):
            lines.append(f"| {name} | {ranked(result['test'])} | {result['seconds']:.0f} |")
    if complete := results.get("complete"):
        lines.append(f"| complete annotations, before | {ranked(complete['before_test'])} | |")
        row = ranked(complete["test"])
        lines.append(f"| complete annotations, tuned | {row} | {complete['seconds']:.0f} |")
    return lines


def gains(results: dict[str, dict[str, Any]], reward: str) -> list[str]:
    """Mean and lowest gain over seeds, ranked by class."""
    seeds = [result for name, result in results.items() if name.startswith(f"{reward}_seed")]
    if not seeds or "before" not in results:
        return []
    before = results["before"]["test"]["class"]
    gained = {
        metric: [100 * (seed["test"]["class"][metric] - before[metric]) for seed in seeds]
        for metric in ("mAP", "AR100")
    }
    return [
        f"{reward} reward, {len(seeds)} seeds: "
        + ", ".join(
            f"{metric} {statistics.mean(values):+.1f} (lowest {min(values):+.1f})"
            for metric, values in gained.items()
        )
    ]


def comparison(results: dict[str, dict[str, Any]], pattern: str) -> list[str]:
    """Validation and test figures, ranked by class, of the results that match."""
    rows = [
        f"| {name} | "
        + " | ".join(figures(result[s]["class"]) for s in ("validation", "test"))
        + " |"
        for name, result in results.items()
        if re.match(pattern, name)
    ]
    return ["| | validation | test |", "| --- | --- | --- |", *rows] if rows else []


def draw(results: dict[str, dict[str, Any]]) -> None:
    """Validation mAP over steps, with the controls as lines."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "rewardtune"
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, result in results.items():
        if re.match(r"(map|recall)_(seed\d|long)$", name):
            line = result["evaluations"]
            style = "--" if name.startswith("recall") else "-"
            steps = [point["step"] for point in line]
            axes.plot(steps, [100 * point["mAP"] for point in line], style, label=name)
    before = results["before"]
    best = before["bias_validation"][str(before["best_bias"])]
    axes.axhline(100 * best["mAP"], color="grey", lw=1)
    axes.annotate("best end-token bias", (1, 100 * best["mAP"]), color="grey", va="bottom")
    if likelihood := results.get("likelihood_2500"):
        rate = likelihood["rates"][likelihood["best_rate"]]["validation"]["class"]
        axes.axhline(100 * rate["mAP"], color="grey", lw=1, ls=":")
        label = "maximum likelihood continued"
        axes.annotate(label, (1, 100 * rate["mAP"]), color="grey", va="bottom")
    axes.set_xlabel("learner's step")
    axes.set_ylabel("mAP on validation (%)")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "curves.svg", metadata={"Date": None})


def main() -> None:
    """Writes both files."""
    results = load()
    lines = ["Made by `python -m experiments.detection.summary`; mAP / AR@100 in per cent.", ""]
    lines += [*main_table(results), ""]
    for reward in ("map", "recall"):
        lines += [*gains(results, reward), ""]
    sections = {
        "K = 2 against K = 8 at equal reward queries": r"k\d_of",
        "Lag, plain and with truncated importance weights, after 120 steps at 3e-5": r"lag",
    }
    for title, pattern in sections.items():
        if table := comparison(results, pattern):
            lines += [f"{title}:", "", *table, ""]
    (HERE / "summary.md").write_text("\n".join(lines))
    draw(results)


if __name__ == "__main__":
    main()
