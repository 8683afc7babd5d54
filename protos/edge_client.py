"""What every client of an edge has in common: whom it asks, how long, and what it repeats.

Calls of an edge may be repeated: each is idempotent, or carries a number by which the server knows
it again. So a call that got no answer is sent again, with growing pauses, until patience ends.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from protos.edge import (
    MAX_MESSAGE_BYTES,
    EdgeError,
    channel_credentials,
    channel_options,
    check_token_is_private,
    is_busy,
    split_address,
)
from protos.tokens import TokenSource
from protos.trajectory import WireError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
# The server may not have seen the call, or lost it: asking again does no harm and may help.
REPEATED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
}


class CallFailed(RuntimeError):
    """A call without an answer, or one that the server refuses; the message says which.

    Attributes:
      code: gRPC's status.
      reason: the server's words.
    """

    def __init__(self, message: str, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Peer:
    """An edge to be asked.

    Attributes:
      address: host:port.
      token_env, token_file: where the bearer token is.
      tls: encrypt, and check the server against the system's certificates.
      ca_file: encrypt, and check it against these (PEM).
      certificate, key: PEM files of this client, for mutual TLS.
      insecure: a token may travel in plain text, see `protos.edge.check_token_is_private`.
      timeout: the longest that one attempt may take, in seconds, beside a wait that is asked for.
      patience: the longest that a call is repeated for, in seconds.
    """

    address: str
    token_env: str | None = None
    token_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    timeout: float = 30.0
    patience: float = 120.0

    def __post_init__(self) -> None:
        split_address(self.address)
        for name, value in (("timeout", self.timeout), ("patience", self.patience)):
            if not 0 < value < math.inf:
                raise EdgeError(f"{name} is {value} s; it must be positive")


class EdgeClient:
    """A connection to an edge; safe to use from several threads."""

    def __init__(self, peer: Peer, what: str) -> None:
        """Prepares to connect; the first call does.

        Args:
          peer: whom to ask.
          what: the service's name in messages, such as `replay queue`.

        Raises:
          EdgeError, TokenError: a file or variable that the peer names is not there.
        """
        self.peer = peer
        self.name = f"{what} at {peer.address}"
        self._token = TokenSource(peer.token_env, peer.token_file)
        credentials = channel_credentials(peer.tls, peer.ca_file, peer.certificate, peer.key)
        if self._token:
            check_token_is_private(peer.address, credentials is not None, peer.insecure)
        if credentials is None:
            self._channel = grpc.insecure_channel(peer.address, options=channel_options())
        else:
            options = channel_options()
            self._channel = grpc.secure_channel(peer.address, credentials, options=options)
        self._closing = threading.Event()

    def call(self, method: str, request: bytes, wait: float = 0.0) -> bytes:
        """The answer's bytes.

        Args:
          method: `/service/method`.
          request: its bytes.
          wait: seconds that the server was asked to wait.

        Raises:
          CallFailed: refused, or no answer for `patience` seconds.
          WireError: the request is above the limit of a message.
        """
        check_size(request, method)
        ask = self._channel.unary_unary(method)

        def attempt() -> bytes:
            timeout = self.peer.timeout + wait
            return bytes(ask(request, timeout=timeout, metadata=self._token.metadata()))

        return self.repeat(method, attempt)

    def download(self, method: str, request: bytes) -> Iterator[bytes]:
        """A stream's messages, once; `timeout` bounds each pause between them.

        Raises:
          grpc.RpcError: it broke.
        """
        stream = self._channel.unary_stream(method)(request, metadata=self._token.metadata())
        heard, ended = time.monotonic(), threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                if time.monotonic() - heard > self.peer.timeout:
                    stream.cancel()

        threading.Thread(target=watch, name="download-watch", daemon=True).start()
        try:
            for part in stream:
                heard = time.monotonic()
                yield bytes(part)
        finally:
            ended.set()
            stream.cancel()  # where it is left before its end

    def upload(self, method: str, parts: Iterable[bytes], timeout: float) -> bytes:
        """The answer to a stream, once.

        Raises:
          grpc.RpcError: it broke, or took longer than `timeout` seconds.
        """
        ask = self._channel.stream_unary(method)
        return bytes(ask(iter(parts), timeout=timeout, metadata=self._token.metadata()))

    def repeat(
        self, method: str, attempt: Callable[[], T], progress: Callable[[], object] = lambda: None
    ) -> T:
        """Attempts until there is an answer, a refusal, or patience ends.

        Args:
          method: for messages.
          attempt: raises `grpc.RpcError` where there is none.
          progress: what has been reached; patience begins anew whenever it has changed.
        """
        pause, reached, tries = FIRST_PAUSE, progress(), 0
        give_up = time.monotonic() + self.peer.patience
        while True:
            tries += 1
            try:
                result = attempt()
            except grpc.RpcError as error:
                if progress() != reached:
                    pause, reached, tries = FIRST_PAUSE, progress(), 1
                    give_up = time.monotonic() + self.peer.patience
                late = time.monotonic() + pause >= give_up or self._closing.is_set()
                if late or not (is_busy(error) or error.code() in REPEATED):
                    raise self._failure(method, error, tries) from error
                if tries == 1:
                    logger.warning("%s: %s; asking again", self.name, _say(error))
                # Clients must not come back all at once.
                if self._closing.wait(pause * random.uniform(0.5, 1.0)):
                    raise self._failure(method, error, tries) from error
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if tries > 1:
                    logger.warning("%s answers again", self.name)
                return result

    def close(self) -> None:
        """Disconnects; calls of other threads fail."""
        self._closing.set()
        self._channel.close()

    def _failure(self, method: str, error: grpc.RpcError, tries: int) -> CallFailed:
        code, reason = error.code(), str(error.details())
        said = f"{self.name} could not do `{method.rpartition('/')[2]}`"
        if code in REPEATED:
            said += f", asked {tries} times in {self.peer.patience:g} s"
        if code is grpc.StatusCode.UNAUTHENTICATED:
            said += " (name the token by token_env or token_file)"
        return CallFailed(f"{said}: {code.name}: {reason}", code, reason)


def check_size(request: bytes, method: str) -> None:
    """Raises `WireError` for a message above the limit."""
    if len(request) > MAX_MESSAGE_BYTES:
        raise WireError(
            f"`{method.rpartition('/')[2]}`: the message has {len(request)} bytes; at most "
            f"{MAX_MESSAGE_BYTES} may travel"
        )


def _say(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
