"""`rewardtune report RUN`: measures a run and writes report.html and report.json into it."""

import json
from collections.abc import Callable
from pathlib import Path

from deploy.report.records import read_records
from deploy.run_directory import RunDirectoryError, write_atomically

PAGE_FILE = "report.html"
FIGURES_FILE = "report.json"


def write_report(
    run_directory: Path,
    split: str = "test",
    examples: int | None = None,
    pictures: int = 12,
    samples_per_group: int = 8,
    sampled_examples: int = 100,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Judges the run's policies on a split and writes its report; returns the page's path.

    Args:
      run_directory: runs/NAME.
      split: where the policies are judged.
      examples: only the first so many of the split; None: all.
      pictures: examples drawn, evenly spaced over the split.
      samples_per_group: N samples an example for the reward distribution; 0: no distribution.
      sampled_examples: examples that are sampled, evenly spaced over the split.
      progress: is told what is being done.
    Raises:
      RunDirectoryError: there is no run, nothing to report yet, or it cannot be written.
    """
    from deploy.report.measure import Extent, measure
    from deploy.report.page import page

    records = read_records(run_directory)
    extent = Extent(split, examples, pictures, samples_per_group, sampled_examples)
    report = measure(records, extent, progress)
    path = run_directory / PAGE_FILE
    try:
        text = json.dumps(report.to_json(), indent=1, allow_nan=False)
        write_atomically(run_directory / FIGURES_FILE, text)
        write_atomically(path, page(report))
    except OSError as error:
        raise RunDirectoryError(
            f"the report of {run_directory} cannot be written: {error.strerror}"
        ) from error
    return path
