"""What it costs to bring a policy to its readers, against one copy of it in memory.

For policies of 100 MB and 1 GB, seconds from the moment that all readers begin until the last one
holds a checked parameter tree, medians of repeats:

- `ray`: 8 readers on this machine, each an actor that asks the weight store as a sampler does;
- `grpc`: 4 readers, each a process that asks the service of `rewardtune serve weights`, over
  loopback, in a process of its own;
- `memory_copy`: `numpy.copyto` of as many bytes, in the same run. `ratio` is to it, for all readers
  together; `per_reader` is what it comes to for each.

`pause` is how long a sampler waits for a new version: if it asks the store, checks it and puts it
on its device when its block is done (`without_loading_ahead`, with its parts), and if its block
took longer than the loading, which was done meanwhile (`loading_ahead`).

    python -m benchmarks.weights        # writes benchmarks/results/weights.json

(`ray` or `grpc` after it measures that part alone.) `load` is the machine's load average at the
end: above its cores, others were at work.
"""

import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from deploy import policies
from deploy.policies import Policies, to_device
from learner.packed_weights import checksum_of, pack_weights
from learner.remote_weights import RemoteWeights
from learner.weight_store import RayWeights, WeightStore
from learner.weights_service import WeightsService
from protos.edge_client import Peer
from tests.edges import MemoryWeights
from tests.remote_rewards import Server

RESULTS = Path(__file__).parent / "results" / "weights.json"
SIZES = {"100 MB": 100_000_000, "1 GB": 1_000_000_000}
REPEATS = 3
RAY_READERS, GRPC_READERS = 8, 4
ARRAY = 1_000_000  # floats; a policy has some dozens of arrays
SPAWN = multiprocessing.get_context("spawn")


def params(size: int) -> dict[str, Any]:
    """Random arrays of `size` bytes in all."""
    random = np.random.default_rng(0)
    one = random.normal(size=ARRAY).astype(np.float32)
    return {f"layer_{i:03d}": {"kernel": one + i} for i in range(size // one.nbytes)}


def seconds(run: Callable[[], Any]) -> float:
    began = time.monotonic()
    run()
    return time.monotonic() - began


def memory_copy(size: int) -> float:
    """Of memory that has been touched before."""
    source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
    return statistics.median(seconds(lambda: np.copyto(target, source)) for _ in range(REPEATS))


class RayReader:
    """As a sampler: a client of the store in an actor."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def ready(self) -> None:
        """It has started."""

    def load(self) -> int:
        """The newest version, with nothing kept from before."""
        return RayWeights(self._store).load(None)[0]

    def pause(self) -> dict[str, float]:
        """The parts of a pause, one after the other."""
        weights = RayWeights(self._store)
        began = time.monotonic()
        manifest, arrays = weights.packed(None)
        got = time.monotonic()
        assert checksum_of(arrays) == manifest.checksum
        checked = time.monotonic()
        to_device(dict(arrays))
        put = time.monotonic()
        parts = {"get": got - began, "check": checked - got, "put": put - checked}
        return parts | {"all": put - began}

    def follow(self) -> None:
        """Begins to load ahead."""
        policies.LOOK_SECONDS = 0.1
        self._policies = Policies(RayWeights(self._store), to_device)

    def pause_ahead(self, version: int) -> float:
        """What is left to wait for, when a block has taken longer than the loading."""
        while not any(manifest.version == version for manifest, _ in self._policies._held):
            time.sleep(0.01)
        return seconds(lambda: self._policies.load(version))


def by_ray(size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds of publishing and of all readers, and the pauses of one."""
    store = ray.remote(WeightStore).options(num_cpus=0, max_concurrency=100).remote(1)
    actor: Any = ray.remote(RayReader).options(num_cpus=0)
    readers = [actor.remote(store) for _ in range(RAY_READERS)]
    ray.get([reader.ready.remote() for reader in readers])
    weights, policy = RayWeights(store), params(size)
    published, loaded, pauses, ahead = [], [], [], []
    for version in range(REPEATS):
        packed = pack_weights(version, policy, "float32")
        published.append(seconds(lambda: weights.publish_packed(*packed, False, None)))  # noqa: B023
        loaded.append(seconds(lambda: ray.get([r.load.remote() for r in readers])))
        pauses.append(ray.get(readers[0].pause.remote()))
    for reader in readers[1:]:
        ray.kill(reader)
    ray.get(readers[0].follow.remote())
    for version in range(REPEATS, 2 * REPEATS):
        weights.publish(version, policy, "float32", last=False)
        ahead.append(ray.get(readers[0].pause_ahead.remote(version)))
    ray.kill(readers[0])
    ray.kill(store)
    parts = {part: statistics.median(pause[part] for pause in pauses) for part in pauses[0]}
    pause = {"without_loading_ahead": parts, "loading_ahead": statistics.median(ahead)}
    figures = {
        "publish": statistics.median(published),
        "all_readers": statistics.median(loaded),
        "samples": loaded,
    }
    return figures, pause


def serve(size: int, pipe: Any) -> None:
    """The server's process: one version, until it is told to end."""
    logging.disable(logging.WARNING)
    store = MemoryWeights()
    store.publish_packed(*pack_weights(0, params(size), "float32"), last=False, epoch=None)
    service = WeightsService(store)
    with Server(service.services) as server:
        pipe.send(server.address)
        pipe.recv()
    service.close()


def read(address: str, barrier: Any, pipe: Any) -> None:
    """A reader's process: loads as often as there are repeats, together with the others."""
    for _ in range(REPEATS):
        weights = RemoteWeights(Peer(address))
        barrier.wait()
        weights.load(None)
        pipe.send(time.monotonic())
        weights.disconnect()


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process, and this end of a pipe to it."""
    mine, its = SPAWN.Pipe()
    child = SPAWN.Process(target=target, args=(*arguments, its), daemon=True)
    child.start()
    yield mine
    child.join(60)


def by_grpc(size: int) -> dict[str, Any]:
    """Seconds of all readers."""
    barrier = SPAWN.Barrier(GRPC_READERS + 1)
    loaded = []
    with process(serve, size) as server:
        address = server.recv()
        readers = [process(read, address, barrier) for _ in range(GRPC_READERS)]
        pipes = [reader.__enter__() for reader in readers]
        for _ in range(REPEATS):
            barrier.wait()
            began = time.monotonic()  # one clock for all processes of a machine
            loaded.append(max(pipe.recv() for pipe in pipes) - began)
        for reader in readers:
            reader.__exit__(None, None, None)
        server.send("end")
    return {"all_readers": statistics.median(loaded), "samples": loaded}


def compared(figures: dict[str, Any], readers: int, copy: float) -> dict[str, Any]:
    """The figures, and what they are in copies."""
    ratio = figures["all_readers"] / copy
    told = {"memory_copy": copy, "readers": readers, "load": os.getloadavg()[0]}
    return figures | told | {"ratio": ratio, "per_reader": ratio / readers}


def main(parts: Sequence[str]) -> None:
    results: dict[str, Any] = {}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text())["sizes"]
    if "ray" in parts:
        ray.init(num_cpus=2, object_store_memory=3_500_000_000, include_dashboard=False)
    for name, size in SIZES.items():
        of_size = results.setdefault(name, {})
        for part in parts:
            copy = memory_copy(size)
            if part == "ray":
                figures, of_size["pause"] = by_ray(size)
                of_size["ray"] = compared(figures, RAY_READERS, copy)
            else:
                of_size["grpc"] = compared(by_grpc(size), GRPC_READERS, copy)
            print(name, part, json.dumps(of_size), flush=True)
        write(results)


def write(results: dict[str, Any]) -> None:
    about = {
        "command": "python -m benchmarks.weights",
        "unit": "seconds; ratio and per_reader in memory copies",
        "repeats": REPEATS,
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "python": sys.version.split()[0],
        "ray": ray.__version__,
    }
    RESULTS.write_text(json.dumps(about | {"sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ("ray", "grpc"))
