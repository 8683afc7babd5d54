"""The queue's contract over Redis: shared by any process that reaches it, and durable with AOF.

The rules are those of `replay.state`, in `redis_groups.lua` and the files that follow it: each call
is one script, which Redis runs whole or not at all. Time is Redis's own, so workers' clocks do not
matter. Tickets are not stored: who samples computes them.
"""

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import NoScriptError

from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.fence import fenced
from replay.queue import (
    Completion,
    Frontier,
    LearnerFenced,
    Lease,
    Quarantined,
    QueueClosed,
    QueueUnavailable,
    Stage,
    StageStats,
    Stats,
    check_ordinals,
)
from replay.redis_connection import NoRoom, RedisConnection, Restarting
from replay.seen import with_others
from replay.state import MAX_REASON

PREFIX = "rewardtune"
FIRST_POLL, LONGEST_POLL = 0.002, 0.1
OWNER_SECONDS = 30.0
"""A run whose owner has asked for no stats for so long has none; nobody else's asking counts."""

_SCRIPT = b"\n".join(
    (Path(__file__).parent / f"redis_{part}.lua").read_bytes()
    for part in ("groups", "ready", "restart", "queue")
)
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()

Argument = bytes | str | int | float


class RunTaken(QueueUnavailable):
    """Another controller is at work on a run of this name in the same Redis.

    Also what one is told that was away for so long that another has taken its run.

    Attributes:
      seen: when it was last seen there, by Redis's clock.
      free_in: seconds until the run can be taken, if it is not seen again.
    """

    def __init__(self, reason: str, seen: float, free_in: float) -> None:
        super().__init__(reason)
        self.seen, self.free_in = seen, free_in


class RedisReplayQueue:
    """`ReplayQueue` on the keys `rewardtune:{RUN}:…`; every call waits for a lost Redis.

    A call that is repeated because its answer was lost has its effect once, in whichever order its
    attempts come.

    A run of the same name and other numbers makes the queue anew. Leases, outcomes and epochs of
    the one before are unknown to it; who has called `join` gets no lease of it, either.
    """

    def __init__(
        self,
        connection: RedisConnection,
        run: str,
        mint: Callable[[int], bytes] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Talks of one run; makes no call yet.

        Args:
          connection: to Redis.
          run: its name.
          mint: the ticket's bytes of an ordinal; pure. Who leases `to_sample` needs it.
          clock: None: Redis's own; a simulation passes another, in seconds.
        """
        self.connection = connection
        self._run = run
        self._mint = mint
        self._clock = clock
        self._meta = f"{key_prefix(run)}meta"
        self._client_id = secrets.token_hex(6)
        self._requests = 0
        self._owner = self._joined = self._epoch = ""
        self._lock = threading.Lock()

    def open(self, config: QueueConfig, owner: str, identity: str, run_config: str = "") -> bool:
        """Takes the run's queue up, or makes it anew; returns whether it was taken up.

        A queue of the same identity goes on: groups keep their samples and scores, leases are given
        back, since whoever held them ended with the command that ran the run. The learner's
        `restart` then says from where.

        Args:
          config: of the queue; settings may have changed.
          owner: tells a controller from others, and is the same when it comes again.
          identity: tells this run from all others, and from itself with other settings that its
            numbers depend on.
          run_config: the run's config as JSON, for those who join it.

        Raises:
          RunTaken: a controller of another `owner` is at work on it.
        """
        settings: dict[str, Argument] = {
            "block": config.block,
            "window": config.window,
            "ordered": int(config.mode == "ordered"),
            "max_deliveries": config.max_deliveries,
            "ttl1": config.sample_ttl,
            "ttl2": config.score_ttl,
            "ttl3": config.train_ttl,
            "run_config": run_config,
        }
        if config.total_groups is not None:
            settings["total"] = config.total_groups
        # A lease is a promise of samples in blocks of one size, and a place in an order.
        identity = f"{identity} {config.mode} {config.block}"
        pairs = [part for pair in settings.items() for part in pair]
        incarnation = secrets.token_hex(4)
        goes_on = self._call("open", owner, OWNER_SECONDS, identity, incarnation, *pairs)
        self._owner = owner
        return bool(goes_on)

    def join(self) -> str:
        """The run's config; from now on work of this run alone is leased.

        When the queue is made anew, `lease` raises `QueueClosed`: the run that was joined is over.

        Raises:
          QueueUnavailable: as of `run_config`.
        """
        told, self._joined = self._look()
        return told

    def run_config(self) -> str:
        """The run's config as JSON, as `open` was given it.

        Raises:
          QueueUnavailable: there is no such run, or Redis does not answer.
        """
        return self._look()[0]

    def _look(self) -> tuple[str, str]:
        """The run's config, and what tells its queue from others of its name."""

        def look(client: redis.Redis, again: bool) -> list[bytes | None]:
            found: Any = client.hmget(self._meta, ["run_config", "incarnation"])
            return found

        told, incarnation = self.connection.run("hmget", look)
        if told is None or incarnation is None:
            raise self._no_such_run()
        return told.decode(), incarnation.decode()

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
        stage = Stage(stage)
        if n < 1 or (ttl is not None and ttl <= 0):
            raise ValueError(f"{worker} asks {stage} for n={n}, ttl={ttl}: both must be positive")
        check_ordinals([] if first is None else [first])
        share = "" if first is None else first
        self._epoch = epoch or self._epoch
        seconds = "" if ttl is None else ttl
        asked = (stage, n, seconds, worker, epoch or "", share, self._joined)
        until, pause = time.monotonic() + wait, FIRST_POLL
        while True:
            found = self._call("lease", *asked)
            left = until - time.monotonic()
            if found:
                told, payloads = found
                values = zip(json.loads(told), payloads, strict=True)
                return [self._lease(stage, worker, *of, payload) for of, payload in values]
            if left <= 0:
                return []
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_POLL)

    def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """See `ReplayQueue.renew`."""
        return [held.decode() for held in self._call("renew", *lease_ids)] if lease_ids else []

    def complete(self, items: Sequence[tuple[str, bytes]]) -> list[Completion]:
        """See `ReplayQueue.complete`; waits while Redis has no room for more samples."""
        return _completions(self._call("complete", *_flat(items)))

    def fail(self, items: Sequence[tuple[str, str, FailureKind]]) -> list[Completion]:
        """See `ReplayQueue.fail`."""
        told = ((lease_id, _kept(reason), kind.name.lower()) for lease_id, reason, kind in items)
        return _completions(self._call("fail", *_flat(told)))

    def release(self, lease_ids: Sequence[str]) -> None:
        """See `ReplayQueue.release`."""
        if lease_ids:
            self._call("release", *lease_ids)

    def release_worker(self, worker: str, reason: str) -> int:
        """See `ReplayQueue.release_worker`."""
        return int(self._call("release_worker", worker, _kept(reason), self._owner))

    def fence(self) -> str:
        """See `ReplayQueue.fence`."""
        return self._call("fence", self._owner).decode()

    def ack(
        self, ordinals: Sequence[int], dropped: Sequence[int] = (), epoch: str | None = None
    ) -> None:
        """See `ReplayQueue.ack`."""
        check_ordinals([*ordinals, *dropped])
        self._epoch = epoch or self._epoch
        self._call("ack", epoch or "", len(ordinals), *ordinals, *dropped)

    def stats(self) -> Stats:
        """See `ReplayQueue.stats`."""
        stages, out, window, acked, dropped, made_up_for, total, counters, expired, *rest = (
            self._call("stats", self._owner)
        )
        reasons, closed, held, full = rest
        self.connection.full = bool(full)
        names = [worker.decode() for worker in expired[::2]]
        of_worker = dict(zip(names, map(int, expired[1::2]), strict=True))
        quarantined, redelivered, expired_count, too_late = counters
        return Stats(
            stages={
                stage: _stage_stats(*values) for stage, values in zip(Stage, stages, strict=True)
            },
            out=out,
            window=window,
            room=window - out,
            acked=int(acked),
            dropped=int(dropped),
            finished=total is not None and int(acked) - int(made_up_for) >= int(total),
            quarantined=quarantined,
            redelivered=redelivered,
            expired=expired_count,
            expired_by_worker=with_others(of_worker, expired_count),
            too_late=too_late,
            last_reasons=tuple(reason.decode() for reason in reasons),
            closed=bool(closed),
            held_by_worker={
                worker.decode(): count for worker, count in zip(held[::2], held[1::2], strict=True)
            },
        )

    def quarantine(self) -> list[Quarantined]:
        """See `ReplayQueue.quarantine`."""
        return [
            Quarantined(int(ordinal), Stage(stage.decode()), tuple(r.decode() for r in reasons))
            for ordinal, stage, reasons in self._call("quarantine")
        ]

    def frontier(self) -> Frontier:
        """See `ReplayQueue.frontier`."""
        next_unacked, dropped, above = self._call("frontier")
        return Frontier(int(next_unacked), tuple(map(int, above)), int(dropped))

    def restart(self, frontier: Frontier, epoch: str | None = None) -> None:
        """See `ReplayQueue.restart`."""
        above = frontier.acked_above
        self._epoch = epoch or self._epoch
        self._call("restart", epoch or "", frontier.next_unacked, frontier.dropped, *above)
        while self._call("restart_on", epoch or ""):  # in pieces, between which Redis serves others
            pass

    def close(self) -> None:
        """See `ReplayQueue.close`."""
        self._call("close")

    def _lease(self, stage: Stage, worker: str, *values: Any) -> Lease:
        lease_id, ordinal, ttl, deadline, delivery, reasons, block_start, payload = values
        number, start = int(ordinal), None
        if stage is Stage.TO_SAMPLE:
            if self._mint is None:
                raise ValueError(f"{worker} leases to_sample from a queue opened without tickets")
            payload, start = self._mint(number), int(block_start)
        return Lease(
            id=lease_id,
            ordinal=number,
            stage=stage,
            worker=worker,
            ttl=float(ttl),
            deadline=float(deadline),
            delivery=delivery,
            payload=payload,
            reasons=tuple(reasons),  # of none Lua makes an empty object
            block_start=start,
        )

    def _call(self, operation: str, *arguments: Argument) -> Any:
        with self._lock:
            self._requests += 1
            request = self._requests
        client = f"{self._client_id}.{os.getpid()}.{threading.get_ident()}"
        keys = (self._meta, f"{self._meta[:-4]}reply:{client}")
        clock = "" if self._clock is None else self._clock()

        def attempt(server: redis.Redis, again: bool) -> Any:
            given = (*keys, operation, request, int(again), clock, *arguments)
            try:
                answer: Any = server.evalsha(_SHA, len(keys), *given)
            except NoScriptError:  # the first call since Redis started
                answer = server.eval(_SCRIPT, len(keys), *given)  # type: ignore[arg-type]
            if answer[0] == b"full":
                raise NoRoom
            if answer[0] == b"restarting":
                self._go_on()
                raise Restarting
            return answer

        verdict, *results = self.connection.run(operation, attempt)
        if verdict == b"ok":
            return results[0] if results else None
        if verdict == b"closed":
            raise QueueClosed("the replay queue is closed, or made anew: the run is over")
        if verdict == b"fenced":
            raise fenced(results[0].decode())
        if verdict == b"invalid":
            raise ValueError(results[0].decode())
        if verdict == b"taken":
            owner, (seen, ago) = results[0].decode(), map(float, results[1:])
            raise RunTaken(
                f"Redis at {self.connection.name} holds a run {self._run} that is at work in "
                f"{owner}, seen {ago:.0f} s ago; stop that one, or give this run another name with "
                f"name=NAME. A run that was killed can be taken {OWNER_SECONDS:g} s after it was "
                f"last seen: in {max(0.0, OWNER_SECONDS - ago):.0f} s, if it was",
                seen,
                OWNER_SECONDS - ago,
            )
        raise self._no_such_run()

    def _go_on(self) -> None:
        """Ends a `restart` of this client's learner, of which Redis may have forgotten the end."""
        if self._epoch:
            with suppress(LearnerFenced):  # it is another learner's
                left = self._call("restart_on", self._epoch, 1)
                while left:
                    left = self._call("restart_on", self._epoch)

    def _no_such_run(self) -> QueueUnavailable:
        return QueueUnavailable(
            f"Redis at {self.connection.name} holds no queue of the run {self._run}: it was "
            "removed, or Redis lost its data. The run resumes from its last checkpoint"
        )


def key_prefix(run: str) -> str:
    """What every key of a run begins with; the braces keep them on one node of a cluster."""
    return f"{PREFIX}:{{{run}}}:"


def _flat(items: Iterable[Sequence[Any]]) -> list[Any]:
    return [part for item in items for part in item]


def _kept(reason: str) -> bytes:
    return reason[:MAX_REASON].encode(errors="backslashreplace")


def _completions(codes: list[int]) -> list[Completion]:
    return [Completion.DONE if code else Completion.TOO_LATE for code in codes]


def _stage_stats(ready: int, leased: int, oldest: bytes, waits: list[bytes]) -> StageStats:
    ascending = sorted(map(float, waits)) or [0.0]
    return StageStats(
        ready=ready,
        leased=leased,
        oldest_wait=float(oldest),
        wait_p50=ascending[len(ascending) // 2],
        wait_p95=ascending[len(ascending) * 95 // 100],
    )
