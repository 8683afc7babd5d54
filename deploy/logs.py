"""Where log lines go: `runs/NAME/logs/WORKER.log` for each process; warnings to the driver too.

The driver's own warnings go to `logs/controller.log` as well, a file that is there once it has
warned.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(run_directory: Path, worker: str) -> None:
    """Sends this process's log to its own file, and warnings to standard error as well."""
    directory = run_directory / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(directory / f"{worker}.log")
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.WARNING)
    logging.basicConfig(
        level=logging.INFO, format=FORMAT, handlers=[to_file, to_stderr], force=True
    )
    # Ray and JAX report at INFO what concerns their own developers.
    for name in ("ray", "jax", "orbax", "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def warnings_to_file(run_directory: Path, process: str) -> Iterator[None]:
    """Sends this process's warnings to a file of the run too."""
    directory = run_directory / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(directory / f"{process}.log", delay=True)
    to_file.setLevel(logging.WARNING)
    to_file.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger().addHandler(to_file)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(to_file)
        to_file.close()
