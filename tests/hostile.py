"""Messages that lie: a mutator of protobuf bytes, and the edges' servers in a process of their own.

`benchmarks/hostile.py` sends very many, a test some hundreds.
"""

import asyncio
import hashlib
import logging
import multiprocessing
import random
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.redis_server import redis_server

TOKENS = "g00d-t0ken\nold-t0ken 2020-01-01T00:00:00Z\n"
GOOD = (("authorization", "Bearer g00d-t0ken"),)
BAD_TOKENS = (None, "Bearer guess", "Bearer old-t0ken", "Basic g00d-t0ken", "Bearer ", "g00d-t0ken")
VALUES = {
    "name": "hostile",
    "task": {
        "kind": "detection",
        "data": {"kind": "scenes", "train": 16, "validation": 4, "test": 4},
    },
    "model": {"preset": "tiny"},
    "learner": {"steps": 10**9, "groups_per_step": 4, "samples_per_group": 2},
    "actors": {"groups_per_block": 2},
    "rewards": {"terms": [{"path": "rewards.detection:RecallReward"}]},
}

# -- the mutator ----------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value %= 1 << 64
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        octet = data[at]
        value |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return value, at


def fields(data: bytes) -> list[tuple[int, int, Any]]:
    """(number, wire type, value) of each field of a well-formed message."""
    found, at = [], 0
    while at < len(data):
        key, at = _read_varint(data, at)
        kind, value = key & 7, None
        if kind == 0:
            value, at = _read_varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        found.append((key >> 3, kind, value))
    return found


def _joined(parts: list[tuple[int, int, Any]]) -> bytes:
    out = b""
    for number, kind, value in parts:
        out += _varint(number << 3 | kind)
        out += _varint(value) if kind == 0 else b""
        out += (_varint(len(value)) if kind == 2 else b"") + (value if kind != 0 else b"")
    return out


BOUNDARIES = (2**52 - 1, 2**52, 2**53 - 1, 2**53 + 1, 2**60, 2**63)
"""Where a double, an ordinal or a signed integer ends."""
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, *BOUNDARIES, -1, -2, 2**64 - 7)
DOUBLES = (float("nan"), float("inf"), -1.0, 0.0, 1e-300, 1e300, *map(float, BOUNDARIES))
TEXTS = (
    b"",
    b"float64",
    b"object",
    b"<i4",
    b"int64",
    b"\xff\xfe",
    b"../../etc/passwd",
    b"x" * 5000,
)


class Mutator:
    """Changes messages, by a seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def mutate(self, data: bytes) -> bytes:
        """Another message, or none."""
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            way = self.random.choice(
                ("bytes", "cut", "fields", "fields", "fields", "fields", "junk")
            )
            data = getattr(self, f"_{way}")(data)
        return data

    def _bytes(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            if changed:
                changed[self.random.randrange(len(changed))] = self.random.randrange(256)
        return bytes(changed)

    def _cut(self, data: bytes) -> bytes:
        return data[: self.random.randrange(len(data) + 1)]

    def _junk(self, data: bytes) -> bytes:
        at, junk = (
            self.random.randrange(len(data) + 1),
            self.random.randbytes(self.random.randint(1, 12)),
        )
        return data[:at] + junk + data[at:]

    def _fields(self, data: bytes, depth: int = 0) -> bytes:
        """A field is removed, doubled, moved, of another type or number, or its value changed."""
        try:
            parts = fields(data)
        except IndexError:
            parts = []
        if not parts:
            return self._bytes(data)
        at = self.random.randrange(len(parts))
        number, kind, value = parts[at]
        way = self.random.choice(
            ("remove", "double", "shuffle", "kind", "number", "value", "value", "length")
        )
        if way == "remove":
            del parts[at]
        elif way == "double":
            parts += [parts[at]] * self.random.choice((1, 2, 50))
        elif way == "shuffle":
            self.random.shuffle(parts)
        elif way == "kind":
            parts[at] = (number, 0, self._number()) if kind else (number, 2, self._text(b"?"))
        elif way == "number":
            parts[at] = (self.random.choice((1, 2, 3, 4, 5, 6, 7, 9, 15, 1000)), kind, value)
        elif way == "value" and kind == 0:
            parts[at] = (number, 0, self._number())
        elif way == "value" and kind == 2:
            deeper = depth < 4 and self.random.random() < 0.7
            parts[at] = (number, 2, self._fields(value, depth + 1) if deeper else self._text(value))
        elif way == "value" and kind == 1 and self.random.random() < 0.8:
            parts[at] = (number, kind, struct.pack("<d", self.random.choice(DOUBLES)))
        elif way == "value":
            parts[at] = (number, kind, self.random.choice((b"\xff", b"\0", b"\x7f")) * len(value))
        else:
            lie = _joined(parts[:at]) + _varint(number << 3 | 2) + _varint(self._number() % 2**40)
            return lie + _joined(parts[at:])
        return _joined(parts)

    def _number(self) -> int:
        return self.random.choice(
            (*NUMBERS, self.random.randrange(20), self.random.getrandbits(64))
        )

    def _text(self, value: bytes) -> bytes:
        ways = (
            *TEXTS,
            value + value,
            value[: len(value) // 2],
            b"\0" * self.random.choice((8, 4096, 2**20)),
        )
        return self.random.choice(ways)


# -- the servers ----------------------------------------------------------------------------------


def _serve(directory: str, pipe: Connection, redis_url: str | None, mode: str) -> None:
    from deploy.config import RunConfig
    from deploy.payloads import PayloadCheck
    from deploy.processes import ticket_source
    from learner.packed_weights import checksum_of
    from learner.weights_service import WeightsService
    from protos.edge import EdgeOptions, EdgeServer
    from protos.tokens import TokenSource
    from protos.trajectory import WireError
    from replay.queue import Stage
    from replay.service import ReplayService
    from rewards.detection import RecallReward
    from rewards.service import ComputedScorer, handlers
    from tests.edges import MemoryWeights
    from tests.hostile_queues import InMemory, OnRedis
    from vision.tasks.registry import build_task

    logging.disable(logging.WARNING)  # a line for each that is refused
    config = RunConfig.model_validate(VALUES | {"runs": directory, "replay": {"mode": mode}})
    task = build_task(config.task)
    tickets = ticket_source(config, task)
    settings = config.queue_config().model_copy(update={"lag": 1, "total_groups": None})
    inside = OnRedis(settings, tickets, redis_url) if redis_url else InMemory(settings, tickets)
    check = PayloadCheck(config, task, tickets, lambda: 10**12)
    replay = ReplayService(inside.queue, "hostile", check_payload=check)

    class Weights(MemoryWeights):
        def evaluated(self, version: int) -> None:
            self.waiting = [waiting for waiting in self.waiting if waiting != version]

    store = Weights()
    weights = WeightsService(store, {"a/b": (2, 3), "c": ()})
    scorer = ComputedScorer(task, RecallReward(task), 60.0, lambda: None)
    services = {**replay.services(), **weights.services(), **handlers(task, scorer)}
    Path(directory, "tokens").write_text(TOKENS)

    def digest() -> str:
        versions = {n: manifest.checksum for n, (manifest, _) in store.versions.items()}
        told = (inside.digest(), versions, store.epoch, store.waiting)
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def wrong() -> list[str]:
        """What must not be, whatever was accepted."""
        groups, places, found = inside.groups(), inside.places(), []
        if sorted(places) != sorted(group.ordinal for group in groups):
            found.append(f"groups out {sorted(groups)}, places {sorted(places)}")
        if len(groups) > settings.window:
            found.append(f"{len(groups)} groups out, the window is {settings.window}")
        made_in = {Stage.TO_SCORE: Stage.TO_SAMPLE, Stage.TO_TRAIN: Stage.TO_SCORE}
        for group in groups:
            if group.payload is not None:
                try:
                    check(group.ordinal, made_in[group.stage], group.payload)
                except WireError as error:
                    found.append(f"ordinal {group.ordinal} holds what the run cannot use: {error}")
        for version, (manifest, arrays) in store.versions.items():
            if checksum_of(arrays) != manifest.checksum or manifest.shapes != weights._shapes:
                found.append(f"weights version {version} is not what its manifest says")
        return found

    async def main() -> None:
        source = TokenSource(file=Path(directory, "tokens"))
        server = EdgeServer(services, EdgeOptions(token=source))
        pipe.send((await server.start(), task.max_length, task.example_ids("train")[0]))
        loop = asyncio.get_running_loop()
        while (asked := await loop.run_in_executor(None, pipe.recv)) is not None:
            if asked == "digest":
                pipe.send(digest())
            elif asked == "wrong":
                pipe.send(wrong())
            else:
                status = Path("/proc/self/status").read_text()
                resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
                pipe.send(resident + inside.memory())
        await server.stop(0)

    asyncio.run(main())
    replay.close()
    weights.close()


class Servers:
    """The other process.

    Attributes:
      address: of all services.
      length, example: of the task: tokens of a sample, an id of its training split.
    """

    def __init__(self, pipe: Connection, process: Any):
        self._pipe, self.process = pipe, process
        self.address, self.length, self.example = self.ask(None)

    def ask(self, what: str | None) -> Any:
        """`digest` of all state, what is `wrong` in it, or the memory in MB."""
        if what is not None:
            self._pipe.send(what)
        if not self._pipe.poll(120):
            raise AssertionError(f"the servers do not answer; exit code {self.process.exitcode}")
        return self._pipe.recv()


@contextmanager
def servers(directory: Path, backend: str, mode: str) -> Iterator[Servers]:
    """Replay, weights and reward behind one address that wants a token.

    Args:
      directory: for the token.
      backend: of the queue: memory or redis.
      mode: of the queue: async or ordered.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with ExitStack() as stack:
        url = None
        if backend == "redis":
            url = stack.enter_context(redis_server("--appendonly", "no")).url
        process = context.Process(
            target=_serve, args=(str(directory), theirs, url, mode), daemon=True
        )
        process.start()
        try:
            yield Servers(ours, process)
            ours.send(None)
            process.join(30)
        finally:
            if process.is_alive():
                process.kill()
                process.join()


# -- messages that are right ----------------------------------------------------------------------


def sampled_bytes(ticket: bytes, length: int) -> bytes:
    """A sampled group of a ticket."""
    from protos.trajectory import Sampled, Ticket

    tokens, of = np.zeros((2, length), np.int32), Ticket.from_bytes(ticket)
    version = of.policy_version or 0
    return Sampled(of, tokens, tokens.astype(np.float32), version, "jax").to_bytes()
