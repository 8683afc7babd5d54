"""Fixtures that several test files share."""

from pathlib import Path

import pytest

from tests.runs import ray_cluster, tiny_values, tune, undisturbed

__all__ = ["ray_cluster", "tiny_values", "tune", "undisturbed"]

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The COCO samples that lie beside the repository and are not part of it."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the COCO samples at {path}, which stay out of the repository")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference inputs and outputs."""
    return REPOSITORY / "tests" / "golden"
