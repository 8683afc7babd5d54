"""Time of the colorfulness reward: this repository's kernel against scikit-image and numpy.

The reference is what one would write: `skimage.color.rgb2lab` in float64, `arctan2`, a histogram.
Both run in the same process on one core, on the same images, and must give the same counts. What
is measured is CPU time, so that other processes disturb it less.

    python -m benchmarks.colorfulness
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import skimage
from skimage.color import rgb2lab

from vision.data.images import load_rgb, resize_rgb, to_model
from vision.metrics.colorfulness import HUE_BINS, VIVID_ABOVE, count_colours

SIDE = 512
RESULT = Path(__file__).parent / "results" / "colorfulness.json"


def images() -> dict[str, np.ndarray]:
    """[512, 512, 3] in [-1, 1]: a photo, noise of any colour, and a muted picture, as models give.

    None holds exact gray, which the reference would leave to rounding.
    """
    random = np.random.default_rng(0)
    photo = load_rgb(Path(skimage.__file__).parent / "data" / "coffee.png")
    wobble = random.uniform(-1e-3, 1e-3, (SIDE, SIDE, 3))
    muted = random.uniform(-0.9, 0.9, (SIDE, SIDE, 1)) + random.normal(0, 0.02, (SIDE, SIDE, 3))
    return {
        "photo": (to_model(resize_rgb(photo, SIDE, SIDE)) * 0.99 + wobble).astype(np.float32),
        "noise": random.uniform(-1, 1, (SIDE, SIDE, 3)).astype(np.float32),
        "muted": muted.astype(np.float32),
    }


def reference(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Pixels of each hue bin, and vivid pixels."""
    lab = rgb2lab((image.astype(np.float64) + 1) / 2)
    a, b = lab[..., 1], lab[..., 2]
    hues = np.histogram(np.arctan2(b, a), HUE_BINS, (-np.pi, np.pi))[0]
    return hues, int((a**2 + b**2 > VIVID_ABOVE).sum())


def measure(run: Callable[[], object], repeats: int) -> list[float]:
    """CPU seconds of each repeat, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return times


def compare(image: np.ndarray) -> dict[str, float]:
    """Medians of both on one image, in turns, so that a busy machine slows both."""
    hues, vivid = count_colours(image)
    expected, expected_vivid = reference(image)
    if hues.tolist() != expected.tolist() or vivid != expected_vivid:
        raise SystemExit(f"the two disagree: {hues} {vivid}, {expected} {expected_vivid}")
    ours, theirs = [], []
    for _ in range(5):
        ours += measure(lambda: count_colours(image), 20)
        theirs += measure(lambda: reference(image), 5)
    our_median, their_median = statistics.median(ours), statistics.median(theirs)
    return {
        "fused_milliseconds": round(our_median * 1e3, 3),
        "reference_milliseconds": round(their_median * 1e3, 2),
        "times_faster": round(their_median / our_median, 1),
    }


def main() -> None:
    """Measures, prints and writes the result."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = {
        "what": f"hue bins and vivid pixels of {SIDE} × {SIDE} on one core, median CPU time; "
        "reference: scikit-image's rgb2lab in float64 and numpy's histogram; equal counts",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}, scikit-image {skimage.__version__}",
    } | {name: compare(image) for name, image in images().items()}
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
