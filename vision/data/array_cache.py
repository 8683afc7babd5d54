"""Generated data on disk: folders of .npy files, which all processes of a machine map and share."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def cache_root(cache_dir: Path | None) -> Path:
    """Where generated data are kept: the given folder, or ~/.cache/rewardtune."""
    return Path(cache_dir).expanduser() if cache_dir else Path.home() / ".cache" / "rewardtune"


def write_arrays(arrays: Mapping[str, np.ndarray], place: Path) -> None:
    """Writes a folder of .npy files that is there as a whole or not at all, also with two at work.

    Raises:
      OSError: it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array)
        draft.chmod(0o755)
        draft.rename(place)
    except OSError:
        # Another process may have been first: its data are the same.
        if not place.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
