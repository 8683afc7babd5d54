"""Fixtures that several test files share, and what every test process runs with."""

import os
from pathlib import Path

import pytest

from tests.queues import open_queue
from tests.runs import ray_cluster, tiny_values, tune, two_hosts, undisturbed

__all__ = ["open_queue", "ray_cluster", "tiny_values", "tune", "two_hosts", "undisturbed"]

# One thread a process, compiled programs shared: two cores run two test processes or one Ray.
# Set before JAX is imported; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/rewardtune/xla-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

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
