"""The queue's service (`protos/replay.proto`): checks what comes from outside, and asks the queue.

It holds nothing of the run: what a lost server knew, leases included, is in the queue behind it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import grpc

from protos import replay_pb2 as pb
from protos import trajectory_pb2
from protos.edge import MAX_MESSAGE_BYTES, Refused, Services
from protos.trajectory import WireError, parse, read_failed, serialise
from replay import wire
from replay.answers import Answers
from replay.queue import (
    Completion,
    LearnerFenced,
    Lease,
    QueueClosed,
    QueueUnavailable,
    ReplayQueue,
    Stage,
    read_lease_id,
)
from replay.waits import Waits

T = TypeVar("T")

MAX_COUNT = 65536
THREADS = 16

CheckPayload = Callable[[int, Stage, bytes], object]
"""Told ordinal and stage of the lease and what was completed, in a thread; raises `WireError` for
what the run's next stage could not use."""


class ReplayService:
    """One run's queue, to be served by a `protos.edge.EdgeServer`."""

    def __init__(
        self,
        queue: ReplayQueue,
        run: str,
        config: str = "{}",
        check_payload: CheckPayload = lambda ordinal, stage, payload: None,
        task: Mapping[str, str] | None = None,
        least_ttl: float = wire.LEAST_TTL,
    ) -> None:
        """Prepares to answer.

        Args:
          queue: of the run; its calls may block, and come from several threads.
          run: its name.
          config: its config as JSON, for callers that have none.
          check_payload: of what workers complete.
          task: what a worker's task must agree on with the run's, each by its name.
          least_ttl: seconds that a lease must be asked for at least; tests are more hurried.
        """
        self._least_ttl = least_ttl
        self._queue, self._run, self._config = queue, run, config
        self._task = dict(task or {})
        self._check_payload = check_payload
        self._answers = Answers()
        self._stopping = threading.Event()
        self._over = self._ended = False
        self._waits = Waits("replay-lease")
        self._threads = ThreadPoolExecutor(THREADS, "replay-call")

    def services(self) -> Services:
        """The methods, from bytes to bytes."""
        return {
            wire.SERVICE: {
                "GetRun": self._get_run,
                "Lease": self._lease,
                "Renew": self._renew,
                "Complete": self._complete,
                "Fail": self._fail,
                "Release": self._release,
                "ReleaseWorker": self._release_worker,
                "Ack": self._ack,
                "Fence": self._fence,
                "Restart": self._restart,
                "Close": self._close,
                "GetStats": self._stats,
                "GetQuarantine": self._quarantine,
                "GetFrontier": self._frontier,
            }
        }

    def look(self) -> None:
        """Notes whether the run has ended; `QueueUnavailable` where the queue does not say."""
        self._over = self._queue.stats().closed

    def end(self) -> bool:
        """The queue is gone, and not asked any more; returns whether its run had ended.

        Then whoever asks is told so. Else the run was killed, and may go on at another place.
        """
        self._ended = self._over
        return self._ended

    def stop(self) -> None:
        """Ends waits; to be called before the server stops."""
        self._stopping.set()

    def close(self) -> None:
        """Ends the threads, when the server has stopped; one that hangs is not waited for."""
        self.stop()
        self._waits.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _get_run(self, data: bytes) -> bytes:
        parse(pb.GetRunRequest(), data)
        answer = pb.GetRunResponse(name=self._run, config=self._config, task=self._task)
        return serialise(answer)

    async def _lease(self, data: bytes) -> bytes:
        message = parse(pb.LeaseRequest(), data)
        stage = wire.read_stage(message.stage)
        worker = wire.read_name("worker", message.worker)
        wait = wire.read_seconds("wait", message.wait, wire.MAX_WAIT)
        ttl = None
        if message.HasField("ttl"):
            ttl = wire.read_seconds("ttl", message.ttl, wire.MAX_TTL, self._least_ttl)
        if message.count > MAX_COUNT:
            raise WireError(f"count is {message.count}; at most {MAX_COUNT} may be leased at once")
        epoch = message.epoch if message.HasField("epoch") else None
        first = message.first if message.HasField("first") else None

        def lease(seconds: float) -> list[Lease]:
            found = self._queue.lease(stage, message.count, ttl, worker, seconds, epoch, first)
            if self._stopping.is_set():
                self._queue.release([one.id for one in found])
                raise Refused(grpc.StatusCode.UNAVAILABLE, "the server stops; ask again")
            self._over = False  # if it was, it has been resumed
            return found

        async def answer() -> bytes:
            if wait:
                found = await self._waits.until_found(wait, lease, self._ask, bool)
            else:
                found = await self._ask(lambda: lease(0.0))
            return await self._fitting(found)

        return await self._once(message.call, data, answer)

    async def _fitting(self, leases: Sequence[Lease]) -> bytes:
        """As many leases as one message holds; the others go back, untried."""
        groups, size = [], 0
        for lease in leases:
            group = wire.lease_message(lease)
            size += group.ByteSize() + 16
            if size > MAX_MESSAGE_BYTES:
                break
            groups.append(group)
        left = [lease.id for lease in leases[len(groups) :]]
        if left:
            await self._ask(lambda: self._queue.release(left))
        if left and not groups:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"ordinal {leases[0].ordinal} does not fit a message of {MAX_MESSAGE_BYTES} bytes: "
                "fewer samples in a group, or shorter ones",
            )
        return serialise(pb.LeaseResponse(groups=groups))

    async def _renew(self, data: bytes) -> bytes:
        ids = wire.read_items("lease_ids", parse(pb.RenewRequest(), data).lease_ids)
        held = await self._ask(lambda: self._queue.renew(ids))
        return serialise(pb.RenewResponse(lease_ids=held))

    async def _complete(self, data: bytes) -> bytes:
        message = parse(pb.CompleteRequest(), data)
        items = [(item.lease_id, item.payload) for item in wire.read_items("items", message.items)]

        async def answer() -> bytes:
            done = await self._ask(lambda: self._checked(items))
            return serialise(pb.CompleteResponse(completions=wire.completion_numbers(done)))

        return await self._once(message.call, data, answer)

    def _checked(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """Completes what the next stage can use; what is not held any more comes too late anyway.

        Raises:
          WireError: it cannot use one of them; then none is completed.
        """
        late = set()
        for lease_id, payload in items:
            of = read_lease_id(lease_id)
            if of is None:
                late.add(lease_id)
                continue
            stage, ordinal = of
            try:
                self._check_payload(ordinal, stage, payload)
            except WireError:
                if self._queue.renew([lease_id]):
                    raise
                late.add(lease_id)
        held = [item for item in items if item[0] not in late]
        done = iter(self._queue.complete(held) if held else [])
        return [Completion.TOO_LATE if i in late else next(done) for i, _ in items]

    async def _fail(self, data: bytes) -> bytes:
        message = parse(pb.FailRequest(), data)
        items = []
        for item in wire.read_items("items", message.items):
            message_of = trajectory_pb2.Failed(reason=item.reason, kind=item.kind)
            failed = read_failed(f"lease {item.lease_id}", message_of)
            items.append((item.lease_id, failed.reason, failed.kind))

        async def answer() -> bytes:
            done = await self._ask(lambda: self._queue.fail(items))
            return serialise(pb.FailResponse(completions=wire.completion_numbers(done)))

        return await self._once(message.call, data, answer)

    async def _release(self, data: bytes) -> bytes:
        ids = wire.read_items("lease_ids", parse(pb.ReleaseRequest(), data).lease_ids)
        await self._ask(lambda: self._queue.release(ids))
        return serialise(pb.ReleaseResponse())

    async def _release_worker(self, data: bytes) -> bytes:
        message = parse(pb.ReleaseWorkerRequest(), data)
        worker = wire.read_name("worker", message.worker)

        async def answer() -> bytes:
            count = await self._ask(lambda: self._queue.release_worker(worker, message.reason))
            return serialise(pb.ReleaseWorkerResponse(released=count))

        return await self._once(message.call, data, answer)

    async def _ack(self, data: bytes) -> bytes:
        message = parse(pb.AckRequest(), data)
        epoch = message.epoch if message.HasField("epoch") else None
        ordinals = wire.read_items("ordinals", message.ordinals)
        dropped = wire.read_items("dropped", message.dropped)
        await self._ask(lambda: self._queue.ack(ordinals, dropped, epoch))
        return serialise(pb.AckResponse())

    async def _fence(self, data: bytes) -> bytes:
        message = parse(pb.FenceRequest(), data)

        async def answer() -> bytes:
            return serialise(pb.FenceResponse(epoch=await self._ask(self._queue.fence)))

        return await self._once(message.call, data, answer)

    async def _restart(self, data: bytes) -> bytes:
        message = parse(pb.RestartRequest(), data)
        wire.read_items("acked_above", message.frontier.acked_above)
        frontier = wire.read_frontier(message.frontier)
        if not message.HasField("epoch"):
            raise WireError("a Restart needs the epoch that its learner was told by Fence")
        epoch = message.epoch

        async def answer() -> bytes:
            await self._ask(lambda: self._queue.restart(frontier, epoch))
            return serialise(pb.RestartResponse())

        return await self._once(message.call, data, answer)

    async def _close(self, data: bytes) -> bytes:
        parse(pb.CloseRequest(), data)
        await self._ask(self._queue.close)
        return serialise(pb.CloseResponse())

    async def _stats(self, data: bytes) -> bytes:
        parse(pb.GetStatsRequest(), data)
        return serialise(wire.stats_message(await self._ask(self._queue.stats)))

    async def _quarantine(self, data: bytes) -> bytes:
        parse(pb.GetQuarantineRequest(), data)
        return serialise(wire.quarantine_message(await self._ask(self._queue.quarantine)))

    async def _frontier(self, data: bytes) -> bytes:
        parse(pb.GetFrontierRequest(), data)
        frontier = await self._ask(self._queue.frontier)
        return serialise(pb.GetFrontierResponse(frontier=wire.frontier_message(frontier)))

    async def _once(
        self, call: pb.Call, data: bytes, answer: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        return await self._answers.once(call.caller, call.number, data, answer)

    async def _ask(self, ask: Callable[[], T], threads: ThreadPoolExecutor | None = None) -> T:
        """What the queue says, with its refusals as statuses."""
        if self._ended:
            reason = f"{wire.CLOSED}: the run is over"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(threads or self._threads, partial(ask))
        except QueueClosed as error:
            self._over = True
            reason = f"{wire.CLOSED}: {error}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason) from error
        except LearnerFenced as error:
            reason = f"{wire.FENCED}: {error}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason) from error
        except QueueUnavailable as error:
            if self._over or self._ended:  # the queue of a run that is over goes soon after
                reason = f"{wire.CLOSED}: the run is over, and its queue is gone"
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason) from error
            raise Refused(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        except WireError:
            raise
        except ValueError as error:  # the queue's refusals, which name what was asked
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
