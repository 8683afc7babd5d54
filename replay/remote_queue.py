"""The queue's contract over gRPC, for workers and learners outside of Ray.

A call that gets no answer is repeated; each has its effect once, as long as the server lives. A
server that was lost with a `lease` at work may have leased groups that nobody knows of: they come
back by their ttl.
"""

import itertools
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grpc

from protos import replay_pb2 as pb
from protos.edge import MAX_MESSAGE_BYTES
from protos.edge_client import CallFailed, EdgeClient, Peer
from protos.trajectory import Failed, FailureKind, WireError, failed_message, parse, serialise
from replay import wire
from replay.queue import (
    Completion,
    Frontier,
    LearnerFenced,
    Lease,
    Quarantined,
    QueueClosed,
    QueueUnavailable,
    Stats,
)


@dataclass(frozen=True)
class ServedRun:
    """The run that a server serves.

    Attributes:
      name: of the run.
      config: its config as JSON.
      task: what a worker's task must agree on with the run's, each by its name.
    """

    name: str
    config: str
    task: Mapping[str, str]


LONGEST_WAIT = 30.0
# Beside the items of a message: its call, and a few bytes for each item.
_OVERHEAD, _PER_ITEM = 1024, 128


class RemoteReplayQueue:
    """`ReplayQueue` of `rewardtune serve replay`; safe to use from several threads."""

    def __init__(self, peer: Peer) -> None:
        """Prepares to connect; the first call does.

        Raises:
          EdgeError, TokenError: a setting of the peer that cannot work.
        """
        self._client = EdgeClient(peer, "replay queue")
        self._name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._numbers = threading.local()

    def run(self) -> ServedRun:
        """The run that is served."""
        answer = parse(pb.GetRunResponse(), self._ask("GetRun", pb.GetRunRequest()))
        return ServedRun(answer.name, answer.config, dict(answer.task))

    def lease(
        self,
        stage: str,
        n: int,
        ttl: float | None,
        worker: str,
        wait: float = 0.0,
        epoch: str | None = None,
        first: int | None = None,
    ) -> list[Lease]:
        """See `ReplayQueue.lease`; what does not fit one message is left for the next call."""
        number = wire.stage_number(stage)
        if n < 1 or (ttl is not None and ttl <= 0):
            raise ValueError(f"{worker} asks {stage} for n={n}, ttl={ttl}: both must be positive")
        until = time.monotonic() + wait
        while True:
            left = max(0.0, until - time.monotonic())
            piece = min(left, LONGEST_WAIT)
            request = pb.LeaseRequest(
                call=self._call(),
                stage=number,
                count=n,
                ttl=ttl,
                worker=worker,
                wait=piece,
                epoch=epoch,
                first=first,
            )
            answer = parse(pb.LeaseResponse(), self._ask("Lease", request, piece))
            if answer.groups or left <= piece:
                return [wire.read_lease(group) for group in answer.groups]

    def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """See `ReplayQueue.renew`."""
        if not lease_ids:
            return []
        answer = self._ask("Renew", pb.RenewRequest(lease_ids=lease_ids))
        return list(parse(pb.RenewResponse(), answer).lease_ids)

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`; in as many messages as it takes.

        Raises:
          WireError: a payload is above the limit of a message.
        """
        completions: list[Completion] = []
        for some in _portions(items):
            request = pb.CompleteRequest(
                call=self._call(),
                items=[pb.CompleteRequest.Item(lease_id=i, payload=payload) for i, payload in some],
            )
            answer = parse(pb.CompleteResponse(), self._ask("Complete", request))
            completions += wire.read_completions(answer.completions, len(some))
        return completions

    def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """See `ReplayQueue.fail`."""
        request = pb.FailRequest(call=self._call())
        for lease_id, reason, kind in items:
            failed = failed_message(Failed(reason, kind))
            request.items.add(lease_id=lease_id, reason=failed.reason, kind=failed.kind)
        answer = parse(pb.FailResponse(), self._ask("Fail", request))
        return wire.read_completions(answer.completions, len(items))

    def release(self, lease_ids: Sequence[str]) -> None:
        """See `ReplayQueue.release`."""
        if lease_ids:
            self._ask("Release", pb.ReleaseRequest(lease_ids=lease_ids))

    def release_worker(self, worker: str, reason: str) -> int:
        """See `ReplayQueue.release_worker`."""
        request = pb.ReleaseWorkerRequest(call=self._call(), worker=worker, reason=reason)
        return parse(pb.ReleaseWorkerResponse(), self._ask("ReleaseWorker", request)).released

    def fence(self) -> str:
        """See `ReplayQueue.fence`."""
        answer = self._ask("Fence", pb.FenceRequest(call=self._call()))
        return parse(pb.FenceResponse(), answer).epoch

    def ack(
        self, ordinals: Sequence[int], dropped: Sequence[int] = (), epoch: str | None = None
    ) -> None:
        """See `ReplayQueue.ack`."""
        if any(not 0 <= ordinal < 1 << 64 for ordinal in (*ordinals, *dropped)):
            raise ValueError(f"cannot ack {list(ordinals)}, {list(dropped)}: an ordinal is not one")
        self._ask("Ack", pb.AckRequest(ordinals=ordinals, dropped=dropped, epoch=epoch))

    def restart(self, frontier: Frontier, epoch: str | None = None) -> None:
        """See `ReplayQueue.restart`."""
        message = wire.frontier_message(frontier)
        self._ask("Restart", pb.RestartRequest(call=self._call(), frontier=message, epoch=epoch))

    def close(self) -> None:
        """See `ReplayQueue.close`: it ends the run, not this connection."""
        self._ask("Close", pb.CloseRequest())

    def stats(self) -> Stats:
        """See `ReplayQueue.stats`."""
        answer = self._ask("GetStats", pb.GetStatsRequest())
        return wire.read_stats(parse(pb.GetStatsResponse(), answer))

    def quarantine(self) -> list[Quarantined]:
        """See `ReplayQueue.quarantine`."""
        answer = self._ask("GetQuarantine", pb.GetQuarantineRequest())
        return wire.read_quarantine(parse(pb.GetQuarantineResponse(), answer))

    def frontier(self) -> Frontier:
        """See `ReplayQueue.frontier`."""
        answer = parse(pb.GetFrontierResponse(), self._ask("GetFrontier", pb.GetFrontierRequest()))
        return wire.read_frontier(answer.frontier)

    def disconnect(self) -> None:
        """Ends this connection; the run goes on."""
        self._client.close()

    def _call(self) -> pb.Call:
        """Numbers a call; each thread makes one after the other."""
        if not hasattr(self._numbers, "count"):
            self._numbers.count = itertools.count(1)
            self._numbers.name = f"{self._name}.{secrets.token_hex(4)}"
        return pb.Call(caller=self._numbers.name, number=next(self._numbers.count))

    def _ask(self, method: str, request: object, wait: float = 0.0) -> bytes:
        try:
            data = serialise(request)  # type: ignore[arg-type]
            return self._client.call(f"/{wire.SERVICE}/{method}", data, wait)
        except CallFailed as error:
            raise _as_the_queue_says(error) from error


def _as_the_queue_says(error: CallFailed) -> Exception:
    if error.code is grpc.StatusCode.FAILED_PRECONDITION:
        kind, _, reason = error.reason.partition(": ")
        if kind == wire.CLOSED:
            return QueueClosed(reason)
        if kind == wire.FENCED:
            return LearnerFenced(reason)
    if error.code is grpc.StatusCode.INVALID_ARGUMENT:
        return ValueError(error.reason)
    return QueueUnavailable(str(error))


def _portions(items: Sequence[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """The items in parts that a message holds, at least one part."""
    part: list[tuple[str, bytes]] = []
    size = _OVERHEAD
    for lease_id, payload in items:
        takes = len(lease_id) + len(payload) + _PER_ITEM
        if _OVERHEAD + takes > MAX_MESSAGE_BYTES:
            raise WireError(
                f"the group of lease {lease_id} has {len(payload)} bytes; at most "
                f"{MAX_MESSAGE_BYTES} may travel: fewer samples in a group, or shorter ones"
            )
        if part and size + takes > MAX_MESSAGE_BYTES:
            yield part
            part, size = [], _OVERHEAD
        part.append((lease_id, payload))
        size += takes
    yield part
