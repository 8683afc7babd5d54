"""Time of CIDEr-D: this repository's kernel with references counted before, against pycocoevalcap.

1,000 images with five references each and one candidate. Without arguments the captions are made
up, with words as frequent as in natural text; given a folder with `gts.json` and `res.json` they
are those. Both run in the same process on one core and must agree. What is measured is CPU time, so
that other processes disturb it less. The reference code counts its references at each call; that
time is in its figure, as it is when a reward calls it, and ours is given beside.

    python -m benchmarks.cider [FOLDER]
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from vision.metrics.cider import Cider

IMAGES, REFERENCES = 1000, 5
RESULT = Path(__file__).parent / "results" / "cider.json"

Corpus = tuple[list[list[str]], list[str]]


def made_up(seed: int) -> Corpus:
    """Captions of 7 to 15 words by Zipf's law, those of an image partly alike."""
    random = np.random.default_rng(seed)

    def caption(theme: np.ndarray) -> str:
        words = random.zipf(1.3, random.integers(7, 16)) % 5000
        shared = random.random(len(words)) < 0.5
        return " ".join(f"w{w}" for w in np.where(shared, theme[: len(words)], words))

    references, candidates = [], []
    for _ in range(IMAGES):
        theme = random.zipf(1.3, 16) % 5000
        references.append([caption(theme) for _ in range(REFERENCES)])
        candidates.append(caption(theme))
    return references, candidates


def from_folder(folder: Path) -> Corpus:
    """The tokenised captions of `gts.json` and `res.json`."""
    references = json.loads((folder / "gts.json").read_text())
    candidates = json.loads((folder / "res.json").read_text())
    return list(references.values()), [candidates[image][0] for image in references]


def measure(run: Callable[[], object], repeats: int) -> list[float]:
    """CPU seconds of each repeat, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return times


def main() -> None:
    """Measures, prints and writes the result."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    references, candidates = from_folder(Path(sys.argv[1])) if sys.argv[1:] else made_up(seed=0)
    scorer = Cider(references)
    cooked = scorer.cook(references)
    images = np.arange(len(references))

    def ours() -> np.ndarray:
        return scorer.score(cooked, images, candidates)

    def theirs() -> np.ndarray:
        reference = CiderScorer(n=4, sigma=6.0)
        for candidate, captions in zip(candidates, references, strict=True):
            reference += (candidate, captions)
        return reference.compute_score()[1]

    difference = float(np.abs(ours() - theirs()).max())
    if difference > 1e-12:
        raise SystemExit(f"the two disagree by {difference}")
    # In turns, so that a busy machine slows both.
    our_times, their_times, cooking = [], [], []
    for _ in range(5):
        our_times += measure(ours, 20)
        their_times += measure(theirs, 1)
        cooking += measure(lambda: scorer.cook(references), 3)
    our_median, their_median = statistics.median(our_times), statistics.median(their_times)
    result = {
        "what": f"{len(references)} images × {REFERENCES} references on one core, median CPU time",
        "captions": "COCO's" if sys.argv[1:] else "made up",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}",
        "kernel_milliseconds": round(our_median * 1e3, 3),
        "counting_references_milliseconds": round(statistics.median(cooking) * 1e3, 1),
        "pycocoevalcap_milliseconds": round(their_median * 1e3, 1),
        "times_faster": round(their_median / our_median, 1),
        "cider": float(ours().mean()),
        "largest_difference": difference,
    }
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
