"""Makes `summary.md` of the results that there are.

python -m experiments.quick_starts.summary
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Results = dict[str, dict[str, Any]]
# By task: the metrics shown, and what they are multiplied by.
SHOWN = {
    "captioning": {"CIDEr": 1, "words_per_caption": 1},
    "colorization": {"colorfulness": 1, "vivid": 1, "hue_entropy": 1, "rmse": 1},
    "panoptic": {
        "PQ": 100,
        "SQ": 100,
        "RQ": 100,
        "PQ_things": 100,
        "PQ_stuff": 100,
        "unmatched_per_image": 1,
        "missed_per_image": 1,
    },
}


def load() -> Results:
    """The results by name."""
    paths = sorted((HERE / "results").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def groups(task: str, results: Results) -> dict[str, list[dict[str, Any]]]:
    """What is told apart in a task's table -> a result a seed."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, result in results.items():
        if match := re.fullmatch(rf"{task}_(.+?)(?:_?seed\d)?", name):
            rows.setdefault(match[1] if "seed" not in match[1] else "tuned", []).append(result)
    return rows


def cell(values: list[float], scale: float) -> str:
    """The mean, and the range where there are several seeds."""
    scaled = [scale * value for value in values]
    digits = 1 if scale == 100 else 3
    text = f"{statistics.mean(scaled):.{digits}f}"
    if len(scaled) > 1:
        text += f" ({min(scaled):.{digits}f} to {max(scaled):.{digits}f})"
    return text


def table(task: str, results: Results) -> list[str]:
    """The task's figures on the test split."""
    metrics = SHOWN[task]
    lines = [
        f"## {task}",
        "",
        f"| test split | seeds | {' | '.join(metrics)} | seconds |",
        "| --- " * (len(metrics) + 3) + "|",
    ]
    for row, runs in groups(task, results).items():
        cells = [cell([run["test"][metric] for run in runs], metrics[metric]) for metric in metrics]
        seconds = [run["seconds"] for run in runs if "seconds" in run]
        spent = f"{statistics.mean(seconds):.0f}" if seconds else ""
        lines.append(f"| {row.replace('_', ' ')} | {len(runs)} | {' | '.join(cells)} | {spent} |")
    return [*lines, ""]


def main() -> None:
    """Writes the file."""
    results = load()
    tasks = [task for task in SHOWN if any(name.startswith(f"{task}_") for name in results)]
    lines = ["# Results", "", "Means, with the lowest and highest seed.", ""]
    for task in tasks:
        lines += table(task, results)
    (HERE / "summary.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
