"""A redis-server that the soak may kill: its queue survives in an append-only file."""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from deploy.soak.process_tree import send
from deploy.soak.run_process import SoakError

START_SECONDS = 30.0


class RedisProcess:
    """Started, killed and started again; on a unix socket in a directory of its own."""

    def __init__(self, executable: Path) -> None:
        self._executable = executable
        # A socket's path may have 107 bytes: run directories may be longer.
        self._directory = Path(tempfile.mkdtemp(prefix="rewardtune-soak-"))
        self._socket = self._directory / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it answers.

        Raises:
          SoakError: it does not.
        """
        import redis

        command = [str(self._executable), "--port", "0", "--unixsocket", str(self._socket)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        command += ["--maxmemory", "256mb", "--dir", str(self._directory)]
        log = self._directory / "redis.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                redis.Redis.from_url(self.url).ping()
                return
            except redis.ConnectionError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise SoakError(f"{self._executable}: {log.read_text()[-500:]}") from error
                time.sleep(0.02)

    def kill(self) -> None:
        """As a crash."""
        assert self._process is not None
        send(self._process.pid, signal.SIGKILL)
        send(self._process.pid, signal.SIGCONT)
        self._process.wait(START_SECONDS)

    def close(self) -> None:
        """Ends it and removes its data."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._directory)
