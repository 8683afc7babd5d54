"""What every gRPC edge has in common: message sizes, TLS, tokens, health, an orderly end.

Handlers take and return bytes and parse them by themselves, so that bytes which are no message end
as INVALID_ARGUMENT with a reason, before anything else has seen them.
"""

import asyncio
import hmac
import ipaddress
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos.trajectory import WireError

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20
GRACE_SECONDS = 5.0
# A status travels in a header, whose size is limited; a reason may quote what was sent.
_MAX_DETAILS = 1000
_HEALTH = "/grpc.health.v1.Health/"
# A peer that is gone without a word is noticed within a minute, even while a call waits for hours.
_PING_MILLISECONDS = 30_000

Handler = Callable[[bytes], Awaitable[bytes]]


class EdgeError(ValueError):
    """A setting of an edge that cannot work, and what would."""


def read_token(env: str | None, file: Path | str | None) -> str | None:
    """A bearer token from an environment variable or a file; None where neither is named.

    Raises:
      EdgeError: both are named, or what is named holds no token.
    """
    if env and file:
        raise EdgeError(f"the token is named twice: the variable {env} and the file {file}")
    if env:
        token, where = os.environ.get(env, "").strip(), f"the environment variable {env}"
    elif file:
        where = f"the file {file}"
        try:
            token = Path(file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise EdgeError(f"no token: {where} cannot be read: {error}") from error
    else:
        return None
    if not token or not token.isascii() or not token.isprintable():
        raise EdgeError(f"no token: {where} is not set, or not one line of ASCII")
    return token


def authorization(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that carries the token."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def channel_options() -> list[tuple[str, int]]:
    """Options of a client's channel."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", _PING_MILLISECONDS // 3),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]


def channel_credentials(tls: bool, ca_file: Path | str | None) -> grpc.ChannelCredentials | None:
    """Credentials of a TLS channel, checked against `ca_file` or the system's; None: plain text.

    Raises:
      EdgeError: the file cannot be read.
    """
    if ca_file:
        return grpc.ssl_channel_credentials(_read("ca_file", Path(ca_file).expanduser()))
    return grpc.ssl_channel_credentials() if tls else None


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeError(f"{name} {path} cannot be read: {error.strerror}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class EdgeOptions:
    """Where an edge listens, and whom it answers.

    Attributes:
      host: an address of this machine; 0.0.0.0 for all.
      port: 0 takes a free one.
      token: what callers must send as `authorization: Bearer TOKEN`; None: anybody may call.
      certificate, key: PEM files; both: TLS.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise EdgeError("TLS needs both a certificate and its key, or neither")

    def __repr__(self) -> str:  # a token never stands in a log
        return f"EdgeOptions({self.host}:{self.port})"

    def credentials(self) -> grpc.ServerCredentials | None:
        """Of TLS; None: plain text."""
        if self.certificate is None or self.key is None:
            return None
        pair = (_read("the TLS key", self.key), _read("the TLS certificate", self.certificate))
        return grpc.ssl_server_credentials([pair])


class EdgeServer:
    """A gRPC server of some services, with the health service beside them."""

    def __init__(self, services: Mapping[str, Mapping[str, Handler]], options: EdgeOptions):
        """Prepares to serve, in the running event loop.

        Args:
          services: service name -> method name -> handler of a unary call.
          options: where, and for whom.
        """
        self._services = services
        self._options = options
        self._server = grpc.aio.server(
            interceptors=[_BearerToken(options.token)] if options.token else [],
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # Else a second server on the port would take half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_MILLISECONDS // 3),
            ],
        )
        for service, methods in services.items():
            handlers = {
                method: grpc.unary_unary_rpc_method_handler(_guarded(f"{service}/{method}", handle))
                for method, handle in methods.items()
            }
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> str:
        """Listens; returns host:port.

        Raises:
          EdgeError: the address is taken or not of this machine, or a TLS file is wrong.
        """
        options = self._options
        address = f"{options.host}:{options.port}"
        try:
            credentials = options.credentials()
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise EdgeError(
                f"cannot listen on {address}: the port is taken, the address is not of this "
                "machine, or certificate and key do not belong together"
            ) from error
        await self._server.start()
        for service in self._services:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        if options.certificate is None and not is_loopback(options.host):
            logger.warning(
                "listening on %s without TLS%s: whoever reaches it %s",
                address,
                "" if options.token else " and without a token",
                "reads what travels" if options.token else "may call it",
            )
        return f"{options.host}:{port}"

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Says NOT_SERVING, takes no more calls, and gives those at work `grace` seconds."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets, in the running event loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _guarded(name: str, handle: Handler) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def call(request: bytes, context: Any) -> bytes:
        try:
            answer = await handle(request)
        except WireError as error:
            reason = str(error)[:_MAX_DETAILS]
            logger.warning("%s refused: %r", name, reason)  # what was sent makes no log lines
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        except (
            Exception
        ) as error:  # one call ends with it, logged and with a status, not the server
            logger.exception("%s failed", name)
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__} in {name}")
        if len(answer) > MAX_MESSAGE_BYTES:
            reason = f"the answer has {len(answer)} bytes; at most {MAX_MESSAGE_BYTES} may travel"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        return answer

    return call


class _BearerToken(grpc.aio.ServerInterceptor):
    """Refuses calls without the token; health may be asked by anybody."""

    def __init__(self, token: str):
        self._expected = f"Bearer {token}".encode()

        async def refuse(request: bytes, context: Any) -> bytes:
            reason = "this server wants its bearer token: authorization: Bearer TOKEN"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
            raise AssertionError("abort raises")

        self._refusal = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        given = given.encode() if isinstance(given, str) else given
        allowed = hmac.compare_digest(given, self._expected)
        if allowed or details.method.startswith(_HEALTH):
            return await continuation(details)
        return self._refusal
