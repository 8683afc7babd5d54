"""Generated data on disk: folders of .npy files, which all processes of a machine map and share."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np


def cache_root(cache_dir: Path | None) -> Path:
    """Where generated data are kept: the given folder, or ~/.cache/rewardtune."""
    return Path(cache_dir).expanduser() if cache_dir else Path.home() / ".cache" / "rewardtune"


def cached_arrays(
    place: Path, names: Sequence[str], mapped: Sequence[str], generate: Callable[[], object]
) -> dict[str, np.ndarray]:
    """The arrays of a folder, generated at first use.

    Args:
      place: the folder; its name tells all that decides what is in it.
      names: the arrays, which are attributes of what `generate` returns.
      mapped: those of them that are mapped, not read.

    Raises:
      ValueError: the folder does not hold them whole.
      OSError: it cannot be written.
    """
    if not place.is_dir():
        generated = generate()
        write_arrays({name: getattr(generated, name) for name in names}, place)
    try:
        return {
            name: np.load(place / f"{name}.npy", mmap_mode="r" if name in mapped else None)
            for name in names
        }
    except (ValueError, EOFError, FileNotFoundError) as error:
        raise broken_cache(place, error) from error


def broken_cache(place: Path, error: Exception) -> ValueError:
    """What is told where a folder's arrays cannot be read."""
    return ValueError(f"the cached scenes in {place} are broken ({error}); delete that folder")


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
