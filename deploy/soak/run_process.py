"""The run under soak: the command that an operator would type, as a process, and what it tells."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.config import RunConfig
from deploy.run_directory import STATUS_FILE
from deploy.soak.process_tree import Process, descendants, reap_orphans

REPOSITORY = Path(__file__).resolve().parents[2]
END_SECONDS = 60.0
AGENTS_SECONDS = 180.0
"""Ray's agents of a node that was killed look for its head for a minute, then end by themselves."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
ROLE_CLASSES = {
    "learner": "ray::LearnerProcess",
    "sampler": "ray::SamplerProcess",
    "reward": "ray::RewardProcess",
    "queue": "ray::QueueProcess",
    "weights": "ray::WeightsProcess",
}


class SoakError(RuntimeError):
    """The soak itself cannot go on."""


class RunProcess:
    """`rewardtune tune`, started as often as it takes."""

    def __init__(self, config: RunConfig, config_file: Path, log: Path) -> None:
        self.config, self._config_file, self.log = config, config_file, log
        self._process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    def start(self, *overrides: str) -> None:
        """Starts it, or starts it again: it resumes."""
        paths = [str(Path.cwd()), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-m", "deploy.cli", "tune", str(self._config_file), *overrides]
        self.started_at = time.time()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the command."""
        assert self._process is not None
        return self._process.pid

    def exit_code(self) -> int | None:
        """None: it is at work."""
        assert self._process is not None
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """Its exit code, once it and all that it started have ended.

        Raises:
          SoakError: that takes longer.
        """
        assert self._process is not None
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise SoakError(f"the command did not end in {seconds:g} s: {self.tail()}") from error
        left = self.left_after(END_SECONDS, agents=False)
        if left:
            raise SoakError(f"the command ended and left {left}")
        return code

    def left_after(self, seconds: float, agents: bool) -> str:
        """The processes of the run that are still there after a while, in words; "": none.

        Args:
          seconds: the longest to wait for their end.
          agents: whether Ray's agents count.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = [p for p in self.processes() if agents or not p.command.startswith(AGENTS)]
            if not left or time.monotonic() > deadline:
                return _named(left)
            time.sleep(0.1)

    def processes(self) -> list[Process]:
        """All that the command started, and itself."""
        assert self._process is not None
        reap_orphans(keep=self._process.pid)
        return [p for p in descendants(os.getpid()) if "redis-server" not in p.command]

    def surplus(self, status: Mapping[str, Any]) -> list[Process]:
        """Worker and service processes that the run does not name: left over from before."""
        told = {each["pid"] for each in [*status["workers"], *status["services"]]}
        return [
            process
            for process in self.processes()
            if process.pid not in told
            and any(process.command.startswith(title) for title in ROLE_CLASSES.values())
        ]

    def status(self) -> dict[str, Any] | None:
        """What this start of the command wrote last; None: nothing yet."""
        path = self.config.directory / STATUS_FILE
        if not path.is_file():
            return None
        status: dict[str, Any] = json.loads(path.read_text())
        return status if status["time"] > self.started_at else None

    def ask_to_stop(self) -> None:
        """As an operator's SIGTERM."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends everything at once, whatever state it is in."""
        if self._process is None:
            return
        for _ in range(100):
            left = self.processes()
            if not left:
                break
            for process in left:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        self._process.wait(END_SECONDS)

    def tail(self, lines: int = 15) -> str:
        """The last lines of what the command said."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _named(processes: Sequence[Process]) -> str:
    return ", ".join(f"{p.pid} {p.command[:60]} ({p.state})" for p in processes)
