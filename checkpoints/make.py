"""Makes the shipped checkpoints anew, from their seeds: `python -m checkpoints.make [NAME ...]`.

Each is the result of `rewardtune pretrain configs/quickstart/NAME.yaml`, its parameters rounded to
float16. A stage II is trained on the rounded file of its stage I, and is what is measured.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
# The config of each, in an order in which each finds what it starts from.
CONFIGS = {
    "quickstart_detection": "detection_pretrain",
    "quickstart_captioning": "captioning_pretrain",
    "quickstart_panoptic_stage_one": "panoptic_stage_one",
    "quickstart_panoptic": "panoptic_pretrain",
    "quickstart_colorization_stage_one": "colorization_stage_one",
    "quickstart_colorization": "colorization_pretrain",
}


def round_to_float16(trained: Path, shipped: Path) -> None:
    """Writes a checkpoint again, smaller; a dictionary's counts do not fit float16 and stay."""
    with np.load(trained) as arrays:
        rounded = {
            name: array.astype(np.float16)
            if array.dtype == np.float32 and "state/" not in name
            else array
            for name, array in arrays.items()
        }
    np.savez_compressed(shipped, allow_pickle=False, **rounded)


def main(names: Sequence[str]) -> None:
    """Trains what is named, all by default."""
    for name in names or list(CONFIGS):
        if name not in CONFIGS:
            raise SystemExit(f"unknown checkpoint {name!r}: one of {', '.join(CONFIGS)}")
        config = CONFIGS[name]
        command = ["pretrain", f"configs/quickstart/{config}.yaml"]
        subprocess.run([sys.executable, "-m", "deploy.cli", *command], check=True)
        round_to_float16(Path("runs") / config / "final.npz", HERE / f"{name}.npz")


if __name__ == "__main__":
    main(sys.argv[1:])
