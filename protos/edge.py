"""What every gRPC edge has in common: message sizes, TLS, tokens, health, an orderly end.

Handlers take and return bytes and parse them by themselves, so that bytes which are no message end
as INVALID_ARGUMENT with a reason, before anything else has seen them.
"""

import asyncio
import ipaddress
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.edge_health import CHECK, WATCH, Health
from protos.edge_receiving import ByteBudget, OpenCalls, OpenStreams, ReceivingLimit
from protos.tokens import TokenSource, refusal
from protos.trajectory import WireError

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20
GRACE_SECONDS = 5.0
# A status travels in a header, whose size is limited; a reason may quote what was sent.
_MAX_DETAILS = 1000
# Of health, which needs no token. A message is a service's name.
_CHECK_BYTES, _WATCH_BYTES = 16 * MAX_MESSAGE_BYTES, 4 * MAX_MESSAGE_BYTES
_HEALTH_SECONDS, _HEALTH_LARGEST = 2.0, 4096
REFLECTION = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
MOST_WATCHES, MOST_REFLECTIONS = 1000, 100
"""Calls at a time that stay open for as long as the caller likes."""
RECEIVE_SECONDS = 60.0
"""The longest that a message may take to come in."""
# A peer that is gone without a word is noticed within a minute, even while a call waits for hours.
_PING_MILLISECONDS = 30_000

Handler = Callable[[bytes], Awaitable[bytes]]


class EdgeError(ValueError):
    """A setting of an edge that cannot work, and what would."""


BUSY_KEY = "rewardtune-busy"
"""Trailing metadata of a call that was refused because too much is open: ask again later."""
_BUSY = ((BUSY_KEY, "1"),)


class Refused(Exception):
    """Raised by a handler: the call ends with this status, and the reason is told."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Download:
    """A method that answers with a stream."""

    handle: Callable[[bytes], AsyncIterator[bytes]]


@dataclass(frozen=True)
class Upload:
    """A method that is asked with a stream."""

    handle: Callable[[AsyncIterator[bytes]], Awaitable[bytes]]


Services = Mapping[str, Mapping[str, Handler | Download | Upload]]


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


def channel_credentials(
    tls: bool,
    ca_file: Path | str | None,
    certificate: Path | str | None = None,
    key: Path | str | None = None,
) -> grpc.ChannelCredentials | None:
    """Credentials of a TLS channel; None: plain text.

    Args:
      tls: encrypt, and check the server against the system's certificates.
      ca_file: or against these (PEM).
      certificate, key: PEM files of this client, for servers that ask for one (mutual TLS).

    Raises:
      EdgeError: a file cannot be read, or one of the pair is missing.
    """
    if (certificate is None) != (key is None):
        raise EdgeError("mutual TLS needs both this client's certificate and its key, or neither")
    if not (tls or ca_file or certificate):
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read("ca_file", ca_file) if ca_file else None,
        private_key=_read("the client's TLS key", key) if key else None,
        certificate_chain=(
            _read("the client's TLS certificate", certificate) if certificate else None
        ),
    )


def _read(name: str, path: Path | str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise EdgeError(f"{name} {path} cannot be read: {error.strerror}") from error


def is_busy(error: Any) -> bool:
    """Whether a call's `grpc.RpcError` says that the server has too many open: ask again later."""
    return any(key == BUSY_KEY for key, _ in error.trailing_metadata() or ())


def join_address(host: str, port: int) -> str:
    """HOST:PORT; an IPv6 address stands in brackets, here as everywhere."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of HOST:PORT; raises `EdgeError` where it is none."""
    host, colon, port = address.rpartition(":")
    if not host or not colon or not port.isdecimal():
        raise EdgeError(f"the address is {address!r}; it must be HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if host.count(":") > 1 and "[" not in host:
        raise EdgeError(f"the address is {address!r}; an IPv6 host stands in brackets: [::1]:50061")
    return host, int(port)


def check_token_is_private(address: str, encrypted: bool, insecure: bool) -> None:
    """Raises `EdgeError` where a bearer token would cross a network that anybody may read.

    Args:
      address: where it is sent.
      encrypted: by TLS.
      insecure: the config says that it may: something else encrypts, or the network is trusted.
    """
    host, _ = split_address(address)
    if not (encrypted or insecure or is_loopback(host)):
        raise EdgeError(
            f"the token for {address} would travel in plain text: set tls: true or ca_file, or "
            "insecure: true where the network between is trusted"
        )


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
      client_ca: PEM certificates; clients must show one that they signed (mutual TLS).
      most_calls: that may be open at a time; others are told to ask again.
      most_bytes: of requests, coming in or at work, in memory at a time; others wait, and are told
        to ask again. What comes in counts as the largest that may.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: TokenSource | str | None = None
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    most_calls: int = 10_000
    most_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        if self.most_bytes < MAX_MESSAGE_BYTES:
            raise EdgeError(
                f"most_bytes is {self.most_bytes}: a message of {MAX_MESSAGE_BYTES} must fit"
            )
        if (self.certificate is None) != (self.key is None):
            raise EdgeError("TLS needs both a certificate and its key, or neither")
        if self.client_ca is not None and self.certificate is None:
            raise EdgeError("mutual TLS needs the server's certificate and key beside client_ca")

    def tokens(self) -> TokenSource:
        """What callers must send; false where anybody may call."""
        given = self.token
        return given if isinstance(given, TokenSource) else TokenSource.of(given)

    def __repr__(self) -> str:  # a token never stands in a log
        return f"EdgeOptions({join_address(self.host, self.port)})"

    def credentials(self) -> grpc.ServerCredentials | None:
        """Of TLS; None: plain text."""
        if self.certificate is None or self.key is None:
            return None
        pair = (_read("the TLS key", self.key), _read("the TLS certificate", self.certificate))
        trusted = None if self.client_ca is None else _read("client_ca", self.client_ca)
        return grpc.ssl_server_credentials([pair], trusted, require_client_auth=trusted is not None)


class EdgeServer:
    """A gRPC server of some services, with health and reflection beside them."""

    def __init__(self, services: Services, options: EdgeOptions):
        """Prepares to serve, in the running event loop.

        Args:
          services: service name -> method name -> its handler. The messages' generated module must
            have been imported, for reflection.
          options: where, and for whom.
        """
        self._options = options
        tokens = options.tokens()
        self._guarded = bool(tokens)
        budget = ByteBudget(options.most_bytes, RECEIVE_SECONDS)
        # Apart, since it must be answered when all else is full; and anybody may ask it.
        apart = {
            CHECK: ByteBudget(_CHECK_BYTES, _HEALTH_SECONDS, _HEALTH_LARGEST),
            WATCH: ByteBudget(_WATCH_BYTES, _HEALTH_SECONDS, _HEALTH_LARGEST),
        }
        receiving = ReceivingLimit(
            lambda method: apart.get(method, budget), MAX_MESSAGE_BYTES, _BUSY
        )
        streams = OpenStreams(
            {
                WATCH: OpenCalls(MOST_WATCHES, _BUSY, "watches of health"),
                REFLECTION: OpenCalls(MOST_REFLECTIONS, _BUSY, "calls of reflection"),
            }
        )
        self._server = grpc.aio.server(
            interceptors=[*([_BearerToken(tokens)] if tokens else []), streams, receiving],
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # Else a second server on the port would take half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_MILLISECONDS // 3),
            ],
        )
        calls = OpenCalls(options.most_calls, _BUSY)
        for service, methods in services.items():
            handlers = {
                method: _method(f"{service}/{method}", handle, calls)
                for method, handle in methods.items()
            }
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        self._health = Health(services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> str:
        """Listens; returns host:port.

        Raises:
          EdgeError: the address is taken or not of this machine, or a TLS file is wrong.
        """
        options = self._options
        address = join_address(options.host, options.port)
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
        if options.certificate is None and not is_loopback(options.host):
            logger.warning(
                "listening on %s without TLS%s: whoever reaches it %s",
                address,
                "" if self._guarded else " and without a token",
                "reads what travels" if self._guarded else "may call it",
            )
        return join_address(options.host, port)

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Says NOT_SERVING, takes no more calls, and gives those at work `grace` seconds."""
        self._health.end()
        await self._server.stop(grace)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets, in the running event loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _method(
    name: str, handle: Handler | Download | Upload, calls: OpenCalls
) -> grpc.RpcMethodHandler:
    """gRPC's handler of a method whose messages are bytes."""
    if isinstance(handle, Download):
        return grpc.unary_stream_rpc_method_handler(_streamed(name, handle, calls))
    if isinstance(handle, Upload):
        return grpc.stream_unary_rpc_method_handler(_guarded(name, handle.handle, calls))
    return grpc.unary_unary_rpc_method_handler(_guarded(name, handle, calls))


def _guarded(
    name: str, handle: Callable[[Any], Awaitable[bytes]], calls: OpenCalls
) -> Callable[[Any, Any], Awaitable[bytes]]:
    async def call(request: Any, context: Any) -> bytes:
        async with calls.one(context):
            try:
                answer = await handle(request)
            except Exception as error:  # noqa: BLE001  # ends one call, not the server
                await context.abort(*_status(name, error))
            await _check_size(answer, context)
            return answer

    return call


def _streamed(
    name: str, download: Download, calls: OpenCalls
) -> Callable[[bytes, Any], AsyncIterator[bytes]]:
    async def call(request: bytes, context: Any) -> AsyncIterator[bytes]:
        async with calls.one(context):
            try:
                async for part in download.handle(request):
                    await _check_size(part, context)
                    yield part
            except Exception as error:  # noqa: BLE001  # as above
                await context.abort(*_status(name, error))

    return call


async def _check_size(answer: bytes, context: Any) -> None:
    if len(answer) > MAX_MESSAGE_BYTES:
        reason = f"the answer has {len(answer)} bytes; at most {MAX_MESSAGE_BYTES} may travel"
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)


def _status(name: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """What the caller is told: reasons that are meant for it, and of a bug only its kind."""
    if isinstance(error, grpc.aio.AbortError):  # it has its status
        raise error
    if isinstance(error, WireError | Refused):
        reason = str(error)[:_MAX_DETAILS]
        logger.warning("%s refused: %r", name, reason)  # what was sent makes no log lines
        code = error.code if isinstance(error, Refused) else grpc.StatusCode.INVALID_ARGUMENT
        return code, reason
    logger.error("%s failed", name, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__} in {name}"


class _BearerToken(grpc.aio.ServerInterceptor):
    """Refuses calls without a token, before a message is read; health may be asked by anybody."""

    def __init__(self, tokens: TokenSource):
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        reason = refusal(given, self._tokens.tokens())
        if reason is None or details.method in (CHECK, WATCH):
            return await continuation(details)

        async def refuse(requests: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

        return grpc.stream_stream_rpc_method_handler(refuse)
