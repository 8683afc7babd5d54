"""A connection to Redis that waits for it: a lost connection or full memory is told, not hidden.

Invariant: a password is in no message, no representation and no config: it is read from the
environment or a file when the connection is made.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from replay.queue import QueueFull, QueueUnavailable
from replay.redis_url import shown_url, url_fault

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
SLOW_SECONDS = 2.0
FULL = "its memory is full: raise maxmemory"
SOCKET_SECONDS = 15.0
# Errors that end by themselves: a disk that is full or a replica that is being promoted. For some
# redis-py has a type, and then takes the word away; inside of a script's error it stays.
_PASSING_TYPES = (
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,  # MASTERDOWN, too
    exceptions.TryAgainError,
)
_PASSING_WORDS = (
    "MISCONF",
    "READONLY",
    "NOREPLICAS",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY ",
)
_REFUSALS = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.NoPermissionError,
)


class RedisRefused(QueueUnavailable):
    """Redis does not let this user in or do what the queue needs; waiting would not help."""


class NoRoom(Exception):
    """An attempt that Redis had no memory for; it is made again."""


class Restarting(Exception):
    """An attempt while a learner goes back to its frontier; it is made again."""


@dataclass(frozen=True)
class RedisSettings:
    """Which Redis, and how to be let in.

    Attributes:
      url: `redis://[USER@]HOST:PORT/DB`, `rediss://` for TLS, or `unix://PATH`.
      password_env: the environment variable that holds the password.
      password_file: or the file that does.
      ca_file: PEM certificates that the server's is checked against; None: the system's.
      patience: seconds that a lost connection or full memory is waited for.
    """

    url: str
    password_env: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    patience: float = 120.0

    def __post_init__(self) -> None:
        fault = url_fault(self.url)
        if fault is not None:
            raise ValueError(f"the URL of Redis {fault}")
        if self.password_env and self.password_file:
            raise ValueError(
                f"the password of Redis is named twice: the variable {self.password_env} and the "
                f"file {self.password_file}"
            )

    def password(self) -> str | None:
        """The password; None where none is named.

        Raises:
          ValueError: what is named holds none.
        """
        if self.password_env:
            where, text = (
                f"environment variable {self.password_env}",
                os.environ.get(self.password_env, ""),
            )
        elif self.password_file:
            where = f"file {self.password_file}"
            try:
                text = self.password_file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"no password of Redis: {where} cannot be read: {error}"
                ) from error
        else:
            return None
        if not text.strip():
            raise ValueError(f"no password of Redis: the {where} is not set, or empty")
        return text.strip()


class RedisConnection:
    """One client of Redis; safe to use from several threads.

    Attributes:
      waiting: why Redis is being waited for, or None.
      full: whether the owner's last `stats` found no memory left: samples wait, the rest goes on.
      interruptions: how often it had to be waited for, or took `SLOW_SECONDS` to answer: leases
        may have run out meanwhile that nobody could renew.
      on_waiting: called while waiting, before each new attempt.
    """

    def __init__(self, settings: RedisSettings) -> None:
        """Prepares to connect; the first call does.

        Raises:
          ValueError: the settings name a password or certificate that is not there.
        """
        self.settings = settings
        self.waiting: str | None = None
        self.full = False
        self.interruptions = 0
        self.on_waiting: Callable[[], None] = lambda: None
        if settings.ca_file is not None and not settings.ca_file.is_file():
            raise ValueError(f"ca_file {settings.ca_file}: no such file")
        options: dict[str, Any] = {
            "password": settings.password(),
            "socket_timeout": SOCKET_SECONDS,
            "socket_connect_timeout": SOCKET_SECONDS,
            "retry": Retry(NoBackoff(), 0),  # we wait ourselves, and say so
            "protocol": 2,
        }
        if settings.ca_file is not None:
            options["ssl_ca_certs"] = str(settings.ca_file)
        if settings.url.startswith("rediss:"):
            options["ssl_check_hostname"] = True  # not the default of every version of redis-py
        if settings.url.startswith("unix:"):
            del options["socket_connect_timeout"]
        self._client = redis.Redis.from_url(settings.url, **options)
        self.name = shown_url(settings.url)

    def __repr__(self) -> str:
        return f"RedisConnection({self.name})"

    def run(self, what: str, attempt: Callable[[redis.Redis, bool], T]) -> T:
        """Calls `attempt(client, again)` until Redis answers; `again`: it may have happened before.

        Raises:
          QueueUnavailable: no answer for `patience` seconds, or an error that waiting cannot mend.
          QueueFull: no room for `patience` seconds.
          RedisRefused: the user or password is wrong, or may not do it.
        """
        patience, pause, again = self.settings.patience, FIRST_PAUSE, False
        give_up: float | None = None
        while True:
            asked = time.monotonic()
            try:
                result = attempt(self._client, again)
            except _REFUSALS as error:
                raise RedisRefused(
                    f"Redis at {self.name} refused `{what}`: {error}. Check the user in "
                    "replay.url, replay.password_env or replay.password_file, and the user's rights"
                ) from None
            except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                fault: type[QueueUnavailable] = QueueUnavailable
                reason, again = f"no answer: {error}", True
            except exceptions.ResponseError as error:
                if not _passes(error):
                    raise QueueUnavailable(
                        f"Redis at {self.name} could not do `{what}`: {error}"
                    ) from error
                fault, reason, again = QueueUnavailable, str(error), True
            except NoRoom:
                fault, reason = QueueFull, FULL
            except Restarting:
                fault, reason = QueueUnavailable, "a learner that resumes goes through its groups"
            else:
                took = time.monotonic() - asked
                if give_up is not None:
                    logger.warning("Redis at %s answers again", self.name)
                    self.waiting = None
                elif took > SLOW_SECONDS:
                    self.interruptions += 1
                    logger.warning("Redis at %s took %.1f s for `%s`", self.name, took, what)
                return result
            now = time.monotonic()
            if give_up is None:
                give_up = now + patience
                self.interruptions += 1
                logger.warning("waiting for Redis at %s: %s", self.name, reason)
            if now >= give_up:
                self.waiting = None
                raise fault(
                    f"Redis at {self.name} could not do `{what}` for {patience:g} s: {reason}"
                )
            self.waiting = self._waiting_for(reason)
            self.on_waiting()
            time.sleep(max(0.0, min(pause, give_up - now)))
            pause = min(2 * pause, LONGEST_PAUSE)

    @property
    def waited_for(self) -> str | None:
        """Why anybody waits for Redis, as far as this client knows; None: nobody does."""
        return self.waiting or (self._waiting_for(FULL) if self.full else None)

    def _waiting_for(self, reason: str) -> str:
        return f"waiting for Redis at {self.name}: {reason}"

    def close(self) -> None:
        """Disconnects."""
        self._client.close()


def _passes(error: exceptions.ResponseError) -> bool:
    known = isinstance(error, _PASSING_TYPES)
    return known or any(word in str(error) for word in _PASSING_WORDS)
