"""Traces: one a group, across the processes that sample, score and train it.

No context travels with a group. The trace is named by (run, ordinal), which every process knows,
and so is the span of each stage, which is the parent of the next stage's. The run is its name and
its id, so that one begun anew under the same name has other traces:

    sample ──▶ score ──▶ train

A span lasts from the lease of a group to its outcome; what lies between two is the wait in the
queue. An attempt that gave the group no outcome (lost, too late, tried again) has a random id
beside them. Spans are made where a worker speaks to the queue, so the roles know nothing of them.
"""

import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from deploy.config import RunConfig
from deploy.logs import role_of
from deploy.otlp import FileSpanExporter, HttpSpanExporter
from protos.trajectory import FailureKind
from replay.queue import Completion, Frontier, Lease, Quarantined, ReplayQueue, Stage, Stats

EXPORT_EVERY_MS = 1000
NAMES = {Stage.TO_SAMPLE: "sample", Stage.TO_SCORE: "score", Stage.TO_TRAIN: "train"}
BEFORE = {Stage.TO_SCORE: Stage.TO_SAMPLE, Stage.TO_TRAIN: Stage.TO_SCORE}


def traced_run(config: RunConfig) -> str:
    """What tells a run from all others, as the ids are made of it: NAME/ID."""
    return f"{config.name}/{config.tracing.run_id}"


def trace_id(run: str, ordinal: int) -> int:
    """128 bits, of a group of a run as `traced_run` tells it."""
    return _bits(f"{run}/{ordinal}", 16)


def span_id(run: str, ordinal: int, stage: Stage) -> int:
    """64 bits, of the outcome of a group in a stage."""
    return _bits(f"{run}/{ordinal}/{stage}", 8)


def is_traced(run: str, ordinal: int, share: float) -> bool:
    """Whether a group is among the share that is traced: all processes agree."""
    return trace_id(run, ordinal) < share * 2**128


def _bits(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big") or 1


class Tracer:
    """Makes the spans of one process of a run, and sends them in batches from a thread."""

    def __init__(self, config: RunConfig, directory: Path, worker: str) -> None:
        """Starts the thread.

        Args:
          config: of the run; its `tracing.endpoint` must be set.
          directory: of the run here.
          worker: this process.
        """
        endpoint = config.tracing.endpoint
        assert endpoint is not None
        self._run, self._share = traced_run(config), config.tracing.share
        exporter = (
            FileSpanExporter(directory / "traces" / f"{worker}.jsonl")
            if endpoint == "file"
            else HttpSpanExporter(endpoint)
        )
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_EVERY_MS)
        self._resource = Resource(
            {
                "service.name": "rewardtune",
                "service.instance.id": worker,
                "rewardtune.run": config.name,
                "rewardtune.run_id": config.tracing.run_id,
                "rewardtune.role": role_of(worker),
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
            }
        )

    def traces(self, lease: Lease) -> bool:
        """Whether the group is traced."""
        return is_traced(self._run, lease.ordinal, self._share)

    def span(self, lease: Lease, began: int, outcome: str, settled: bool, fault: str = "") -> None:
        """Tells of a lease that has ended now.

        Args:
          lease: of a group.
          began: when it was leased, Unix nanoseconds.
          outcome: what became of it, a word.
          settled: whether that is the group's outcome in this stage.
          fault: why it failed; empty: it did not.
        """
        before = BEFORE.get(lease.stage)
        own = span_id(self._run, lease.ordinal, lease.stage) if settled else secrets.randbits(64)
        self._processor.on_end(
            ReadableSpan(
                NAMES[lease.stage],
                context=self._context(lease.ordinal, own),
                parent=None
                if before is None
                else self._context(lease.ordinal, span_id(self._run, lease.ordinal, before)),
                resource=self._resource,
                kind=SpanKind.CONSUMER,
                attributes={
                    "rewardtune.ordinal": lease.ordinal,
                    "rewardtune.delivery": lease.delivery,
                    "rewardtune.outcome": outcome,
                },
                status=Status(StatusCode.ERROR, fault) if fault else Status(),
                start_time=began,
                end_time=time.time_ns(),
                instrumentation_scope=InstrumentationScope("rewardtune"),
            )
        )

    def _context(self, ordinal: int, own: int) -> SpanContext:
        sampled = TraceFlags(TraceFlags.SAMPLED)
        return SpanContext(trace_id(self._run, ordinal), own or 1, False, sampled)

    def flush(self) -> None:
        """Sends what is left."""
        self._processor.force_flush()


@dataclass(frozen=True)
class _Held:
    lease: Lease
    began: int


class TracedQueue:
    """A queue that tells a tracer what becomes of the leases that it hands out."""

    def __init__(self, queue: ReplayQueue, tracer: Tracer) -> None:
        self._queue, self._tracer = queue, tracer
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

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
        """See `ReplayQueue.lease`."""
        leases = self._queue.lease(stage, n, ttl, worker, wait, epoch, first)
        now = time.time_ns()
        again = {lease.ordinal for lease in leases}
        with self._lock:
            held = {id_: h for id_, h in self._held.items() if h.lease.ordinal not in again}
            new = {lease.id: _Held(lease, now) for lease in leases if self._tracer.traces(lease)}
            self._held = held | new
        return leases

    def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """See `ReplayQueue.renew`."""
        still = self._queue.renew(lease_ids)
        with self._lock:
            lost = [self._held[id_] for id_ in set(lease_ids).difference(still) & self._held.keys()]
        for held in lost:
            if (
                held.lease.stage is not Stage.TO_TRAIN
            ):  # what the learner has, it trains all the same
                self._end(held.lease.id, "lost", False, "the lease was lost")
        return still

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`."""
        completions = self._queue.complete(items)
        for (lease_id, _), completion in zip(items, completions, strict=True):
            self._end(lease_id, str(completion), completion is Completion.DONE)
        return completions

    def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """See `ReplayQueue.fail`."""
        completions = self._queue.fail(items)
        for (lease_id, reason, kind), completion in zip(items, completions, strict=True):
            settled = completion is Completion.DONE and kind is FailureKind.DATA
            self._end(lease_id, "failed", settled, reason)
        return completions

    def release(self, lease_ids: Sequence[str]) -> None:
        """See `ReplayQueue.release`."""
        self._queue.release(lease_ids)
        for lease_id in lease_ids:
            self._end(lease_id, "released", False)

    def release_worker(self, worker: str, reason: str) -> int:
        """See `ReplayQueue.release_worker`."""
        return self._queue.release_worker(worker, reason)

    def fence(self) -> str:
        """See `ReplayQueue.fence`: what was held is of the learner before, in this process."""
        with self._lock:
            self._held.clear()
        return self._queue.fence()

    def ack(
        self, ordinals: Sequence[int], dropped: Sequence[int] = (), epoch: str | None = None
    ) -> None:
        """See `ReplayQueue.ack`."""
        self._queue.ack(ordinals, dropped, epoch)
        outcomes = dict.fromkeys(ordinals, "trained") | dict.fromkeys(dropped, "dropped")
        with self._lock:
            done = [held.lease for held in self._held.values() if held.lease.ordinal in outcomes]
        for lease in done:
            outcome = "quarantined" if lease.tombstone else outcomes[lease.ordinal]
            self._end(lease.id, outcome, True)

    def stats(self) -> Stats:
        """See `ReplayQueue.stats`."""
        return self._queue.stats()

    def quarantine(self) -> list[Quarantined]:
        """See `ReplayQueue.quarantine`."""
        return self._queue.quarantine()

    def frontier(self) -> Frontier:
        """See `ReplayQueue.frontier`."""
        return self._queue.frontier()

    def restart(self, frontier: Frontier, epoch: str | None = None) -> None:
        """See `ReplayQueue.restart`."""
        self._queue.restart(frontier, epoch)

    def close(self) -> None:
        """See `ReplayQueue.close`."""
        self._queue.close()

    def _end(self, lease_id: str, outcome: str, settled: bool, fault: str = "") -> None:
        with self._lock:
            held = self._held.pop(lease_id, None)
        if held is not None:
            self._tracer.span(held.lease, held.began, outcome, settled, fault)
