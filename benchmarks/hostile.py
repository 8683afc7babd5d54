"""Very many mutated messages against every service, in a process of their own, over loopback.

    python -m benchmarks.hostile --messages 50000 --out benchmarks/results/hostile.json

The queue is in memory and on a Redis of its own, in both modes: so many messages for each, or for
one with `--only redis-ordered`, which leaves the others in the file as they are.

After every message that is refused the state must be what it was, by its digest; after every batch
a good call must be answered, and what was accepted must be valid. An answer with another status
than those in `EXPECTED`, a server that is gone or memory that grows without bound ends it.
"""

import argparse
import itertools
import json
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from learner.packed_weights import pack_weights
from learner.weights_wire import SERVICE as WEIGHTS
from learner.weights_wire import chunks, manifest_message
from protos import replay_pb2 as replay
from protos import weights_pb2 as weights
from protos.reward import SERVICE as REWARD
from protos.reward import ScoreRequest
from protos.trajectory import Abstained, Sampled, ScoredGroup
from replay.wire import SERVICE as REPLAY
from tests.hostile import (
    BAD_TOKENS,
    BOUNDARIES,
    DOUBLES,
    GOOD,
    Mutator,
    Servers,
    sampled_bytes,
    servers,
)

EXPECTED = {
    "OK",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "ABORTED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
}
BATCH, TIMEOUT = 100, 60.0
TOKENLESS, OVERSIZED, AT_BOUNDARY = 0.05, 0.0002, 0.1
COMBINATIONS = [(queue, mode) for queue in ("memory", "redis") for mode in ("async", "ordered")]
MOST_GROWTH_MB = 400.0
LONGEST_WAIT = 0.02
HEALTH, REFLECTION = health.SERVICE_NAME, reflection.SERVICE_NAME


class Sender:
    """Calls by their paths, with raw bytes."""

    def __init__(self, address: str):
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options)
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable] = {}
        self.calls = 0

    def call(self) -> replay.Call:
        """A caller of its own for each, whose name no mutation makes of another's."""
        self.calls += 1
        name = random.Random(self.calls).getrandbits(64)
        return replay.Call(caller=f"hostile-{name:016x}", number=1)

    def send(
        self, path: str, messages: list[bytes], metadata: Any = GOOD
    ) -> tuple[str, bytes, str]:
        """Status, answer and reason."""
        try:
            if path == f"/{WEIGHTS}/Publish":
                publish = self._channel.stream_unary(path)
                return "OK", publish(iter(messages), timeout=TIMEOUT, metadata=metadata), ""
            if path.startswith(f"/{REFLECTION}/"):
                reflect = self._channel.stream_stream(path)
                parts = list(reflect(iter(messages), timeout=TIMEOUT, metadata=metadata))
                return "OK", b"".join(parts), ""
            if path == f"/{HEALTH}/Watch":
                watch = self._channel.unary_stream(path)
                watching = watch(messages[0], timeout=TIMEOUT, metadata=metadata)
                first = next(watching)
                watching.cancel()
                return "OK", first, ""
            if path == f"/{WEIGHTS}/Download":
                download = self._channel.unary_stream(path)
                parts = list(download(messages[0], timeout=TIMEOUT, metadata=metadata))
                return "OK", b"".join(parts), ""
            ask = self._methods.get(path) or self._channel.unary_unary(path)
            self._methods[path] = ask
            return "OK", ask(messages[0], timeout=TIMEOUT, metadata=metadata), ""
        except grpc.RpcError as error:
            return error.code().name, b"", error.details() or ""

    def good(self, service: str, method: str, message: Any) -> bytes:
        """The answer to a call that must be answered."""
        status, answer, reason = self.send(f"/{service}/{method}", [message.SerializeToString()])
        if status != "OK":
            raise AssertionError(f"a good {method} was answered {status}: {reason}")
        return answer


def right_messages(sender: Sender, server: Servers) -> dict[str, list[bytes]]:
    """Messages that are right now, by path and perhaps a word on them.

    The queue goes on to ordinals that were never out.
    """
    ask, call = sender.good, sender.call()
    new = replay.Frontier(next_unacked=1000 * sender.calls)
    fence = replay.FenceRequest(call=sender.call())
    epoch = replay.FenceResponse.FromString(ask(REPLAY, "Fence", fence)).epoch
    ask(REPLAY, "Restart", replay.RestartRequest(call=call, frontier=new, epoch=epoch))

    def lease(stage: int, count: int) -> list[replay.HeldGroup]:
        request = replay.LeaseRequest(call=sender.call(), stage=stage, count=count, worker="good")
        return list(replay.LeaseResponse.FromString(ask(REPLAY, "Lease", request)).groups)

    def complete(items: list[tuple[str, bytes]]) -> replay.CompleteRequest:
        named = [replay.CompleteRequest.Item(lease_id=i, payload=p) for i, p in items]
        return replay.CompleteRequest(call=sender.call(), items=named)

    to_sample = lease(replay.STAGE_TO_SAMPLE, 2)
    made = [(one.lease_id, sampled_bytes(one.payload, server.length)) for one in to_sample]
    ask(REPLAY, "Complete", complete(made[:2]))
    to_score = lease(replay.STAGE_TO_SCORE, 2)
    scored = [
        (
            one.lease_id,
            ScoredGroup(Sampled.from_bytes(one.payload), (Abstained("no"),) * 2).to_bytes(),
        )
        for one in to_score
    ]
    ask(REPLAY, "Complete", complete(scored[:1]))
    ids = [one.lease_id for one in (*to_sample[2:], *to_score[1:])]
    fail = replay.FailRequest.Item(lease_id=ids[0], reason="because", kind=1)
    manifest, arrays = pack_weights(1, {"a": {"b": np.ones((2, 3))}, "c": np.ones(())}, "float32")
    begin = weights.PublishRequest.Begin(manifest=manifest_message(manifest), epoch=epoch)
    parts = [weights.PublishRequest(begin=begin)]
    parts += [weights.PublishRequest(data=bytes(data)) for data in chunks(arrays)]
    ask(WEIGHTS, "FencePublishers", weights.FencePublishersRequest(epoch=epoch))
    tokens = np.zeros((2, server.length), np.int32)
    score = ScoreRequest("train", server.example, 7, tokens, tokens.astype(np.float32)).to_bytes()
    download = weights.DownloadRequest(version=1, checksum=manifest.checksum)
    frontier = replay.Frontier(next_unacked=1, acked_above=[3, 5], dropped=1)
    of_queue: dict[str, Any] = {
        "Lease": replay.LeaseRequest(
            call=sender.call(), stage=1, count=1, ttl=30, worker="w", epoch=epoch
        ),
        "Lease of a share": replay.LeaseRequest(
            call=sender.call(), stage=3, count=1, worker="l", first=to_score[0].ordinal
        ),
        "Renew": replay.RenewRequest(lease_ids=ids),
        "Complete": complete([*made[2:], *scored[1:]]),
        "Fail": replay.FailRequest(call=sender.call(), items=[fail]),
        "Release": replay.ReleaseRequest(lease_ids=ids),
        "ReleaseWorker": replay.ReleaseWorkerRequest(
            call=sender.call(), worker="good", reason="gone"
        ),
        "Ack": replay.AckRequest(ordinals=[to_score[0].ordinal], dropped=[9], epoch=epoch),
        "Fence": replay.FenceRequest(call=sender.call()),
        "Restart": replay.RestartRequest(call=sender.call(), frontier=frontier, epoch=epoch),
        "GetRun": replay.GetRunRequest(),
        "GetStats": replay.GetStatsRequest(),
        "GetQuarantine": replay.GetQuarantineRequest(),
        "GetFrontier": replay.GetFrontierRequest(),
    }
    of_weights: dict[str, Any] = {
        "GetNewestVersion": weights.GetNewestVersionRequest(),
        "GetManifest": weights.GetManifestRequest(version=1),
        "Download": download,
        "FencePublishers": weights.FencePublishersRequest(epoch=epoch),
        "GetNextToEvaluate": weights.GetNextToEvaluateRequest(wait=0.0),
        "FinishEvaluation": weights.FinishEvaluationRequest(version=1),
        "ListToEvaluate": weights.ListToEvaluateRequest(),
    }
    found = {f"/{REPLAY}/{name}": [m.SerializeToString()] for name, m in of_queue.items()}
    found |= {f"/{WEIGHTS}/{name}": [m.SerializeToString()] for name, m in of_weights.items()}
    found[f"/{WEIGHTS}/Publish"] = [part.SerializeToString() for part in parts]
    found |= {f"/{REWARD}/Score": [score], f"/{REWARD}/Describe": [b""]}
    one_service = health_pb2.HealthCheckRequest(service=REPLAY).SerializeToString()
    found |= {f"/{HEALTH}/{name}": [one_service] for name in ("Check", "Watch")}
    found[f"/{REFLECTION}/ServerReflectionInfo"] = reflections()
    return found


def reflections() -> list[bytes]:
    """One of each question about what is served."""
    extension = reflection_pb2.ExtensionRequest(containing_type=REPLAY, extension_number=1)
    asked: list[dict[str, Any]] = [
        {"list_services": ""},
        {"file_by_filename": "protos/replay.proto"},
        {"file_containing_symbol": REWARD},
        {"file_containing_extension": extension},
        {"all_extension_numbers_of_type": WEIGHTS},
    ]
    return [reflection_pb2.ServerReflectionRequest(**a).SerializeToString() for a in asked]


def at_boundary(call: replay.Call, epoch: str, chance: random.Random) -> tuple[str, list[bytes]]:
    """A message that is right but for one number, which is where numbers end."""
    number, frontier = chance.choice(BOUNDARIES), replay.Frontier()
    lease = replay.LeaseRequest(call=call, stage=3, count=2, worker="w", first=number)
    match chance.randrange(7):
        case 0:
            return f"/{REPLAY}/Lease", [lease.SerializeToString()]
        case 1:
            lease.count, lease.first, lease.stage = number % 2**32, 0, chance.randrange(1, 4)
            return f"/{REPLAY}/Lease", [lease.SerializeToString()]
        case 2:
            lease.ttl, lease.stage = chance.choice(DOUBLES), chance.randrange(1, 4)
            return f"/{REPLAY}/Lease", [lease.SerializeToString()]
        case 3:
            ack = chance.choice(({"ordinals": [number]}, {"dropped": [0, number]}))
            return f"/{REPLAY}/Ack", [replay.AckRequest(**ack).SerializeToString()]
        case 4:
            frontier.next_unacked = number
            frontier.dropped = chance.choice((0, number))
        case 5:
            frontier.next_unacked, frontier.dropped = 9, number
        case _:
            frontier.acked_above.extend([2, *sorted(chance.sample(BOUNDARIES, 2))])
    restart = replay.RestartRequest(call=call, frontier=frontier, epoch=epoch)
    return f"/{REPLAY}/Restart", [restart.SerializeToString()]


def waits(path: str, data: bytes) -> bool:
    """Whether it is a right message that asks the server to wait: it would."""
    kinds: dict[str, Callable[[], Any]] = {
        f"/{REPLAY}/Lease": replay.LeaseRequest,
        f"/{WEIGHTS}/GetNextToEvaluate": weights.GetNextToEvaluateRequest,
    }
    if path not in kinds:
        return False
    message = kinds[path]()
    try:
        message.ParseFromString(data)
    except Exception:  # noqa: BLE001  # whatever it is, the server refuses it
        return False
    return bool(LONGEST_WAIT < message.wait <= 60.0)


def mutated(
    mutator: Mutator, right: dict[str, list[bytes]], sender: Sender
) -> Iterator[tuple[str, list[bytes]]]:
    """Paths and their messages, without end; half of them of what holds most of the contract."""
    rich = [f"/{REPLAY}/Complete", f"/{REPLAY}/Lease", f"/{REWARD}/Score", f"/{WEIGHTS}/Publish"]
    rich += [f"/{REPLAY}/Lease of a share"]
    epoch = replay.RestartRequest.FromString(right[f"/{REPLAY}/Restart"][0]).epoch
    while True:
        if mutator.random.random() < AT_BOUNDARY:
            yield at_boundary(sender.call(), epoch, mutator.random)
            continue
        path = mutator.random.choice(rich if mutator.random.random() < 0.5 else list(right))
        messages = list(right[path])
        at = mutator.random.randrange(len(messages))
        messages[at] = mutator.mutate(messages[at])
        if mutator.random.random() < OVERSIZED:
            messages[at] += b"\x7a" + b"\x80\x80\x80\x20" + bytes(64 * 2**20)
        path = path.split(" ")[0]
        if not waits(path, messages[at]):
            yield path, messages


def run(messages: int, seed: int, directory: Path, queue: str, mode: str) -> dict[str, Any]:
    """Sends them all; what was answered, in figures.

    Args:
      messages: how many.
      seed: of the mutator.
      directory: for the servers' token.
      queue: memory or redis.
      mode: of the queue.

    Raises:
      AssertionError: a message had an effect that it must not have, or an answer.
    """
    mutator, statuses, by_service = Mutator(seed), Counter[str](), Counter[str]()
    tokens, memory, began, sent = Counter[str](), [], time.monotonic(), 0
    with servers(directory, queue, mode) as server:
        sender = Sender(server.address)
        while sent < messages:
            attack = mutated(mutator, right_messages(sender, server), sender)
            before = server.ask("digest")
            for path, parts in itertools.islice(attack, min(BATCH, messages - sent)):
                metadata: Any = GOOD
                if mutator.random.random() < TOKENLESS:
                    token = mutator.random.choice(BAD_TOKENS)
                    metadata = None if token is None else (("authorization", token),)
                status, _, reason = sender.send(path, parts, metadata)
                after = server.ask("digest")
                sent += 1
                statuses[status] += 1
                by_service[f"{path.split('.')[-1].split('/')[0]} {status}"] += 1
                tokens[status] += metadata is not GOOD
                refused = metadata is not GOOD and not path.startswith(f"/{HEALTH}/")
                wrongly = refused != (status == "UNAUTHENTICATED")
                if status not in EXPECTED or wrongly or (status != "OK" and after != before):
                    shown = [part[:20_000].hex() for part in parts]
                    raise AssertionError(
                        f"message {sent} of seed {seed}: {path} answered {status} ({reason}) with "
                        f"{metadata}; changed: {after != before}; sent {shown}"
                    )
                before = after
            wrong = server.ask("wrong")
            if wrong:
                raise AssertionError(f"after message {sent} of seed {seed}: {wrong}")
            memory.append(server.ask("memory"))
            warm = memory[min(len(memory) - 1, 20)]
            if memory[-1] - warm > MOST_GROWTH_MB:
                raise AssertionError(f"memory grew from {warm:.0f} to {memory[-1]:.0f} MB")
        right_messages(sender, server)
    tenth = memory[len(memory) // 10]
    return {
        "messages": sent,
        "seed": seed,
        "statuses": dict(sorted(statuses.items())),
        "by_service": dict(sorted(by_service.items())),
        "without_a_good_token": dict(tokens),
        "batches_after_which_a_good_call_was_answered": len(memory),
        "memory_mb": {"after_a_tenth": round(tenth), "at_the_end": round(memory[-1])},
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    """The command."""
    names = {f"{queue}-{mode}": (queue, mode) for queue, mode in COMBINATIONS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=names)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.only and arguments.out and arguments.out.is_file():
        found = json.loads(arguments.out.read_text())
    for name in [arguments.only] if arguments.only else names:
        with tempfile.TemporaryDirectory() as directory:
            figures = run(arguments.messages, arguments.seed, Path(directory), *names[name])
        command = (
            f"python -m benchmarks.hostile --messages {arguments.messages} "
            f"--seed {arguments.seed} --only {name}"
        )
        found[name] = {"command": command, "python": platform.python_version(), **figures}
        print(json.dumps(found[name], indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
