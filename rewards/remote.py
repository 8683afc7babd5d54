"""A reward behind gRPC (`protos/reward.proto`), used in a config like any other.

    rewards: {terms: [{path: "rewards.remote:RemoteReward", options: {address: "host:50061"}}]}

Both calls are idempotent, so one that got no answer is repeated. What is then still unanswered is
an infrastructure failure: the queue gives the group to another worker. Where there was no server
to be asked it is `RewardAway`, which costs the group no delivery. What the server says of the
samples comes back as it is.
"""

import asyncio
import itertools
import logging
import math
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import grpc

from protos.edge import (
    MAX_MESSAGE_BYTES,
    channel_credentials,
    channel_options,
    check_token_is_private,
    is_busy,
    split_address,
)
from protos.reward import DESCRIBE, SCORE, Description, ScoreResponse
from protos.tokens import TokenSource
from protos.trajectory import FailureKind, InfrastructureError, Outcome, RewardAway, WireError
from rewards.facts import differences, task_facts
from rewards.reward import Group
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 10.0
BUSY_SECONDS = 2.0
QUIET_SECONDS = 1.0
# The server may not have seen the call, or lost it: asking again does no harm and may help.
_REPEATED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
}
# The server understood, and refuses this very request, unless it says that it is busy: it would do
# so again.
_REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}


class RemoteRewardError(ValueError):
    """No server, or not the right one; or it refuses a request."""


class RemoteReward:
    """Implements `rewards.reward.SubmittedReward`; one thread, however many groups are in flight.

    Options:
      address: host:port of `rewardtune serve reward` or `serve human`.
      deadline_seconds: the longest that a group may take at a server, repetitions included.
      retries: repetitions in a row that get no answer; pauses grow from 0.2 s to 10 s.
      in_flight: groups that a worker may have submitted and not answered.
      token_env, token_file: where the bearer token is, in the reward workers' environment.
      tls: encrypt, and check the server against the system's certificates.
      ca_file: encrypt, and check it against these (PEM).
      certificate, key: PEM files of the workers, for a server that asks for them (mutual TLS).
      insecure: the token may travel in plain text, over a network that is trusted.
      connect_seconds: how long to wait for a server that is not there, at start and later.
    """

    def __init__(
        self,
        task: Task,
        address: str,
        deadline_seconds: float = 60.0,
        retries: int = 10,
        in_flight: int = 16,
        token_env: str | None = None,
        token_file: str | None = None,
        tls: bool = False,
        ca_file: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        insecure: bool = False,
        connect_seconds: float = 30.0,
    ):
        for name, value, least in (
            ("deadline_seconds", deadline_seconds, 0.001),
            ("retries", retries, 0),
            ("in_flight", in_flight, 1),
            ("connect_seconds", connect_seconds, 0.001),
        ):
            if not (least <= value < math.inf):
                raise RemoteRewardError(f"{name} is {value}; it must be at least {least}")
        self.in_flight = in_flight
        self._address = address
        self._deadline, self._connect_seconds = deadline_seconds, connect_seconds
        self._retries = retries
        self._credentials = channel_credentials(tls, ca_file, certificate, key)
        self._token = TokenSource(token_env, token_file)
        split_address(address)
        if self._token:
            check_token_is_private(address, self._credentials is not None, insecure)
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self.description = self._describe(connect_seconds)
        self.provides: Sequence[str] = self.description.provides
        self._check_task(task)

    def submit(self, group: Group) -> Future[Sequence[Outcome]]:
        """See `SubmittedReward`.

        Raises:
          WireError: the sequences are not what the wire takes, or too many.
        """
        data = group.request.to_bytes()
        if len(data) > MAX_MESSAGE_BYTES:
            raise WireError(
                f"the group's sequences take {len(data)} bytes; at most {MAX_MESSAGE_BYTES} may "
                "travel: fewer samples in a group, or shorter ones"
            )
        return asyncio.run_coroutine_threadsafe(self._score(data), self._running_loop())

    def close(self) -> None:
        """Ends the thread and the connection; unanswered groups fail."""
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._call_off(), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    async def _call_off(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="remote-reward", daemon=True
                ).start()
            return self._loop

    async def _score(self, data: bytes) -> Sequence[Outcome]:
        answer = ScoreResponse.from_bytes(await self._call(data))
        if answer.failure is None:
            return answer.outcomes
        reason = f"the reward at {self._address}: {answer.failure.reason}"
        if answer.failure.kind is FailureKind.INFRASTRUCTURE:
            raise InfrastructureError(reason)
        raise RemoteRewardError(reason)

    async def _call(self, data: bytes) -> bytes:
        """The answer's bytes; repeats what may be repeated until the deadline."""
        if self._channel is None:  # it belongs to this event loop
            self._channel = self._open(grpc.aio)
        score = self._channel.unary_unary(SCORE)
        await self._connect(self._channel)
        give_up = time.monotonic() + self._deadline
        attempt, said = 0, None
        for tries in itertools.count(1):
            began = time.monotonic()
            try:
                return bytes(
                    await score(data, timeout=give_up - began, metadata=self._token.metadata())
                )
            except grpc.aio.AioRpcError as error:
                now = time.monotonic()
                busy = is_busy(error)
                if busy or now - began > LONGEST_BACKOFF_SECONDS:
                    attempt = 0  # it is there, or was, and has gone since
                pause = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**attempt)
                if busy:
                    pause = BUSY_SECONDS
                pause *= random.uniform(0.5, 1.0)  # workers must not come back all at once
                last = now + pause >= give_up or (attempt >= self._retries and not busy)
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    said = error  # that time ran out says less than why it was asked again
                if last or not (busy or error.code() in _REPEATED):
                    raise self._failure(said or error, tries) from error
                if attempt == 0:
                    logger.warning("reward at %s: %s; asking again", self._address, _say(error))
            attempt += 1
            await asyncio.sleep(pause)
        raise AssertionError("the loop has no other end")

    async def _connect(self, channel: grpc.aio.Channel) -> None:
        """Waits for the server. A group that ends it again and again gets past this: that counts.

        Raises:
          RewardAway: it is not there for `connect_seconds`.
        """
        ready = asyncio.ensure_future(channel.channel_ready())
        try:
            done, _ = await asyncio.wait({ready}, timeout=min(QUIET_SECONDS, self._connect_seconds))
            if not done:
                logger.warning("reward at %s: waiting for it", self._address)
                done, _ = await asyncio.wait({ready}, timeout=self._connect_seconds)
        finally:
            ready.cancel()
        if done:
            return
        try:
            describe = channel.unary_unary(DESCRIBE)
            await describe(b"", timeout=QUIET_SECONDS, metadata=self._token.metadata())
        except grpc.aio.AioRpcError as error:
            raise RewardAway(
                f"no reward answers at {self._address} for {self._connect_seconds:g} s "
                f"({_say(error)})"
            ) from error

    def _failure(self, error: grpc.RpcError, tries: int) -> Exception:
        reason = f"the reward at {self._address}, asked {tries} times: {_say(error)}"
        if error.code() in _REFUSED and not is_busy(error):
            return RemoteRewardError(reason)
        return InfrastructureError(reason)

    def _describe(self, seconds: float) -> Description:
        """Asks what the server is, on a connection of its own, so that nothing runs until needed.

        Raises:
          RemoteRewardError: nothing answers within `seconds`, or something that is no reward.
        """
        give_up = time.monotonic() + seconds
        first, wait = None, False
        with self._open(grpc) as channel:
            while True:
                try:
                    data = channel.unary_unary(DESCRIBE)(
                        b"",
                        timeout=max(0.001, give_up - time.monotonic()),
                        metadata=self._token.metadata(),
                        wait_for_ready=wait,
                    )
                    return Description.from_bytes(data)
                except grpc.RpcError as error:
                    late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    if is_busy(error) and time.monotonic() + BUSY_SECONDS < give_up:
                        first = error
                        time.sleep(BUSY_SECONDS)
                        continue
                    if error.code() not in _REPEATED or wait:
                        # That time ran out says less than why it began to.
                        raise self._no_server(
                            first if late and first else error, seconds
                        ) from error
                    first, wait = error, True
                    logger.warning(
                        "no reward at %s yet: waiting up to %g s", self._address, seconds
                    )
                except WireError as error:
                    raise RemoteRewardError(
                        f"{self._address} answers, but not as a reward: {error}"
                    ) from error

    def _no_server(self, error: grpc.RpcError, seconds: float) -> RemoteRewardError:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return RemoteRewardError(
                f"the reward at {self._address} refuses the token: {_say(error)}. Name it by "
                "token_env or token_file"
            )
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return RemoteRewardError(
                f"no reward answers at {self._address} within {seconds:g} s ({_say(error)}). Start "
                "one with `rewardtune serve reward CONFIG`, or mend the address"
            )
        if is_busy(error):
            return RemoteRewardError(f"the reward at {self._address} is busy: {_say(error)}")
        return RemoteRewardError(f"{self._address} answers, but not as a reward: {_say(error)}")

    def _check_task(self, task: Task) -> None:
        found = differences(task_facts(task), self.description.task)
        if found:
            raise RemoteRewardError(
                f"the reward at {self._address} ({self.description.reward}) serves another task: "
                + "; ".join(found)
            )

    def _open(self, library: object) -> grpc.Channel:
        """A channel of `grpc` or `grpc.aio`."""
        if self._credentials is None:
            return library.insecure_channel(self._address, options=channel_options())  # type: ignore[attr-defined]
        return library.secure_channel(  # type: ignore[attr-defined]
            self._address, self._credentials, options=channel_options()
        )


def _say(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
