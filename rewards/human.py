"""Rewards by people: groups wait for an answer, and the answers become numbers.

A group waits here as an open gRPC call, which costs a few kilobytes and no thread: its lease is
renewed by the reward worker that asked (`rewards.in_flight`), which goes on with other groups.
Invariant: a group gets one answer. It is on disk before it counts, so a server that is started
again, or a worker that asks again, gets the same one and nobody is asked twice.
"""

import asyncio
import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from protos.reward import Description, ScoreRequest, ScoreResponse
from protos.trajectory import Abstained, Failed, FailureKind, Outcome, Scored
from rewards.facts import task_facts
from vision.tasks.errors import describe
from vision.tasks.task import Task

logger = logging.getLogger(__name__)

Mode = Literal["compare", "rate"]
RATINGS = 5
# A group that somebody looks at is offered to others only after so long.
LOOKING_SECONDS = 120.0
# Groups that nobody waits for any more are kept for a while: a worker may ask again.
KEPT_ABANDONED = 1000
KEPT_ABANDONED_BYTES = 64 * 1024 * 1024
# Pictures are drawn when a group is offered; those that were looked at longest ago are drawn anew
# where they are wanted again.
KEPT_PICTURE_BYTES = 256 * 1024 * 1024


class AnswerError(ValueError):
    """An answer that is none, or one to a group that does not wait."""


def outcomes_of(mode: Mode, samples: int, answer: Mapping[str, Any]) -> tuple[Outcome, ...]:
    """The outcomes that an answer means, in the order of the samples.

    `compare`: `ranks`, 1 for the best, equal numbers for equals. The reward is the share of the
    comparisons with the other judged samples that the sample won, a tie counting half: 1 for the
    best, 0 for the worst, 0.5 where all are equal. `rate`: `ratings` from 1 to 5; the reward is
    (rating - 1) / 4. None at a sample: it could not be judged, and abstains. `skip`: all abstain.

    Raises:
      AnswerError: anything else.
    """
    if answer.get("skip") is True:
        return (Abstained("skipped"),) * samples
    name, most = ("ranks", samples) if mode == "compare" else ("ratings", RATINGS)
    values = answer.get(name)
    if not isinstance(values, list) or len(values) != samples:
        raise AnswerError(f"expected {name}, a list of {samples} numbers, or skip: true")
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and 1 <= value <= most):
            raise AnswerError(f"{name} hold {value!r}; each must be null or in 1 .. {most}")
    if mode == "rate":
        rewards = [None if value is None else (value - 1) / (RATINGS - 1) for value in values]
    else:
        rewards = [None if value is None else _share_won(value, values) for value in values]
    unjudged = Abstained("not judged")
    return tuple(unjudged if reward is None else Scored(reward) for reward in rewards)


def _share_won(rank: int, ranks: Sequence[int | None]) -> float | None:
    judged = [other for other in ranks if other is not None]
    if len(judged) < 2:
        return None  # compared with nothing
    won = sum((rank < other) + 0.5 * (rank == other) for other in judged) - 0.5  # without itself
    return won / (len(judged) - 1)


@dataclass(eq=False)
class Waiting:
    """A group that waits for an answer.

    Attributes:
      key: names it; the same for the same sequences.
      request: what is to be judged.
      order: [K] the sample at each position of the page, so that no place is favoured.
      since: when it was first asked for, `time.monotonic`.
      callers: open calls that wait for it; 0: nobody does any more.
      viewer: who was offered it last.
      offered: when.
    """

    key: str
    request: ScoreRequest
    order: list[int]
    since: float
    callers: int = 0
    viewer: str = ""
    offered: float = float("-inf")
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    response: asyncio.Future[ScoreResponse] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def request_bytes(self) -> int:
        """What its sequences take."""
        return self.request.tokens.nbytes + self.request.logprobs.nbytes

    @property
    def picture_bytes(self) -> int:
        """What its pictures take, once they are drawn."""
        return sum(map(len, self.pictures.values()))


class HumanScorer:
    """A `rewards.service.Scorer` whose answers come from people; all calls from one event loop."""

    def __init__(self, task: Task, mode: Mode, answers: Path):
        """Reads the answers that there are.

        Args:
          task: whose samples are judged.
          mode: how they are judged.
          answers: a file of JSON lines, made where there is none.

        Raises:
          AnswerError: the file holds a line that is no answer, or another server writes to it.
          OSError: it cannot be read or written.
        """
        self.mode: Mode = mode
        self.description = Description(f"people ({mode})", (), task_facts(task))
        self._facts = json.dumps(self.description.task, sort_keys=True)
        self._path = answers
        self._answers: dict[str, tuple[Outcome, ...]] = {}
        self._waiting: dict[str, Waiting] = {}
        answers.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: an answer is on disk before it counts.
        self._file = answers.open("ab", buffering=0)
        try:
            self._read_all()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Leaves the file to another server."""
        self._file.close()

    def _read_all(self) -> None:
        answers = self._path
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AnswerError(
                f"{answers} is written by another server: end that one, or give this one another "
                "file of answers (--answers)"
            ) from error
        lines = answers.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            # It was cut short while it was written, so it never counted.
            logger.warning("%s: the last line was cut short; it is left out", answers)
            os.truncate(answers, sum(map(len, lines[:-1])))
            del lines[-1]
        for number, line in enumerate(lines, 1):
            self._read(line, f"{answers}, line {number}")

    def _read(self, line: bytes, where: str) -> None:
        try:
            values = json.loads(line)
            outcomes = outcomes_of(values["mode"], values["samples"], values["answer"])
            self._answers[values["key"]] = outcomes
        except (AnswerError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnswerError(f"{where} is no answer: {error!r}") from error

    @property
    def done(self) -> int:
        """Groups that were answered, now or by an earlier process."""
        return len(self._answers)

    @property
    def waiting(self) -> int:
        """Groups that somebody waits for."""
        return sum(1 for entry in self._waiting.values() if entry.callers)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """See `Scorer`; returns when somebody has answered."""
        key = self._key(request)
        if key in self._answers:
            return ScoreResponse(self._answers[key])
        if key not in self._waiting:
            order = np.random.default_rng(int(key, 16)).permutation(len(request))
            self._waiting[key] = Waiting(key, request, order.tolist(), time.monotonic())
        entry = self._waiting[key]
        entry.callers += 1
        try:
            return await asyncio.shield(entry.response)
        finally:
            entry.callers -= 1
            self._forget_abandoned()

    def next(self, viewer: str) -> Waiting | None:
        """The group that has waited longest and that nobody else looks at; None: there is none."""
        now = time.monotonic()
        for entry in self._waiting.values():
            looked_at = entry.viewer != viewer and now - entry.offered < LOOKING_SECONDS
            if entry.callers and not looked_at:
                entry.viewer, entry.offered = viewer, now
                return entry
        return None

    def find(self, key: str) -> Waiting:
        """A group that waits; `AnswerError` where it does not."""
        if key not in self._waiting:
            raise AnswerError("this group was answered already, or never asked for")
        return self._waiting[key]

    def answer(self, key: str, answer: Mapping[str, Any]) -> None:
        """Gives a group its answer, whose values stand in the order of the page's positions.

        Raises:
          AnswerError: the group does not wait, or this is no answer. Nothing changes then.
          OSError: the answer cannot be written. Nothing changes then, either.
        """
        entry = self.find(key)
        by_sample = _by_sample(answer, entry.order)
        outcomes = outcomes_of(self.mode, len(entry.order), by_sample)
        request = entry.request
        line = {
            "key": key,
            "time": time.time(),
            "split": request.split,
            "example_id": request.example_id,
            "samples": len(request),
            "mode": self.mode,
            "answer": by_sample,
            "waited": round(time.monotonic() - entry.since, 1),
        }
        self._append(json.dumps(line).encode() + b"\n")
        self._answers[key] = outcomes
        self._end(entry, ScoreResponse(outcomes))

    def _append(self, line: bytes) -> None:
        """Writes the whole line to the disk, or raises `OSError` and leaves none of it."""
        before = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise

    def keep_pictures(self, entry: Waiting, pictures: Mapping[str, bytes]) -> None:
        """Keeps what was drawn of a group, and lets go of what was looked at longest ago."""
        entry.pictures = pictures
        drawn = sorted(
            (other for other in self._waiting.values() if other.pictures and other is not entry),
            key=lambda other: other.offered,
        )
        excess = sum(other.picture_bytes for other in drawn) + entry.picture_bytes
        for other in drawn:
            if excess <= KEPT_PICTURE_BYTES:
                break
            excess -= other.picture_bytes
            other.pictures = {}

    def give_up(self, entry: Waiting, error: BaseException) -> None:
        """The group cannot be shown: it fails, so that it holds up nobody."""
        if self._waiting.get(entry.key) is entry:
            reason = describe(error)
            logger.warning("example %s: %s", entry.request.example_id, reason)
            self._end(entry, ScoreResponse((), Failed(reason, FailureKind.DATA)))

    def _end(self, entry: Waiting, response: ScoreResponse) -> None:
        del self._waiting[entry.key]
        entry.response.set_result(response)

    def _key(self, request: ScoreRequest) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.mode.encode(), self._facts.encode(), request.to_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def _forget_abandoned(self) -> None:
        kept = size = 0
        for entry in reversed([entry for entry in self._waiting.values() if not entry.callers]):
            kept, size = kept + 1, size + entry.request_bytes + entry.picture_bytes
            if kept > KEPT_ABANDONED or size > KEPT_ABANDONED_BYTES:
                del self._waiting[entry.key]


def _by_sample(answer: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The answer with its lists in the order of the samples."""
    result: dict[str, Any] = {}
    for name in ("ranks", "ratings"):
        values = answer.get(name)
        if isinstance(values, list) and len(values) == len(order):
            placed: list[Any] = [None] * len(order)
            for position, sample in enumerate(order):
                placed[sample] = values[position]
            result[name] = placed
    return result | ({"skip": True} if answer.get("skip") is True else {})
