"""Where log lines go: `runs/NAME/logs/WORKER.log` for each process; warnings to the driver too."""

import logging
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
