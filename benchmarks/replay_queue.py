"""What the replay queue costs: CPU seconds a group, from ticket to ack.

One driver plays all roles: for each batch of 16 groups it leases and completes `to_sample` and
`to_score` with 16 KB payloads, leases `to_train` and acks. Measured are the bare state machine,
the queue in a Ray actor and the queue on Redis. The CPU of every process counts (driver, actor,
raylet, GCS and the rest; driver and redis-server), and what the idle cluster burns in the same time
is given beside it. Redis writes its append-only file, with `appendfsync always` and `everysec`, and
once more with many groups waiting.

    python -m benchmarks.replay_queue        # writes benchmarks/results/queue.json

(The file is not called queue.py: a script beside it would import it for the standard library's.)
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from replay.config import QueueConfig
from replay.memory import MemoryReplayQueue
from replay.queue import ReplayQueue, Stage
from replay.ray_client import RayReplayQueue
from replay.redis_queue import RedisReplayQueue
from replay.state import QueueState
from replay.tickets import TicketSource
from tests.redis_server import RedisServer, redis_server

RESULTS = Path(__file__).parent / "results" / "queue.json"
BATCH = 16
PAYLOAD = os.urandom(16 * 1024)
REPEATS = 5
CONFIG = QueueConfig(groups_per_step=BATCH, block=BATCH, lag=1)
SOURCE = TicketSource(0, [str(i) for i in range(12_000)], "ordered", 1, BATCH)


def pure_batch(queue: QueueState) -> None:
    now = time.monotonic()
    for stage in (Stage.TO_SAMPLE, Stage.TO_SCORE):
        for lease in queue.lease(stage, 1 if stage is Stage.TO_SAMPLE else BATCH, None, "w", now):
            queue.complete(lease.id, PAYLOAD, now)
    queue.ack([g.ordinal for g in queue.lease(Stage.TO_TRAIN, BATCH, None, "l", now)], now)


def client_batch(queue: ReplayQueue) -> None:
    for stage in (Stage.TO_SAMPLE, Stage.TO_SCORE):
        leases = queue.lease(stage, 1 if stage is Stage.TO_SAMPLE else BATCH, None, "w")
        queue.complete([(lease.id, PAYLOAD) for lease in leases])
    queue.ack([lease.ordinal for lease in queue.lease(Stage.TO_TRAIN, BATCH, None, "l")])


def cpu_of_all_processes() -> float:
    """CPU seconds of this process and its living descendants."""
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = int(fields[11]) + int(fields[12])
    family = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        if not more:
            return sum(used[pid] for pid in family) / os.sysconf("SC_CLK_TCK")
        family |= more


def measure(run: Callable[[], None], batches: int, cpu: Callable[[], float]) -> dict[str, float]:
    """Medians over repeats, microseconds a group."""
    run()
    figures = []
    for _ in range(REPEATS):
        wall, used = time.perf_counter(), cpu()
        for _ in range(batches):
            run()
        groups = batches * BATCH
        wall, used = time.perf_counter() - wall, cpu() - used
        figures.append((used / groups * 1e6, wall / groups * 1e6))
    cpus, walls = zip(*figures, strict=True)
    return {
        "cpu_us_per_group": round(statistics.median(cpus), 1),
        "cpu_us_per_group_min": round(min(cpus), 1),
        "cpu_us_per_group_max": round(max(cpus), 1),
        "wall_us_per_group": round(statistics.median(walls), 1),
    }


def through_ray() -> dict[str, Any]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        handle = ray.remote(MemoryReplayQueue).options(num_cpus=0).remote(CONFIG, SOURCE)
        queue = RayReplayQueue(handle)
        queue.stats()
        time.sleep(5)  # let the cluster finish starting
        wall, used = time.perf_counter(), cpu_of_all_processes()
        time.sleep(5)
        idle = (cpu_of_all_processes() - used) / (time.perf_counter() - wall)
        figures = measure(lambda: client_batch(queue), 200, cpu_of_all_processes)
        share = idle * figures["wall_us_per_group"]
        return figures | {
            "of_which_idle_cluster_us_per_group": round(share, 1),
            "idle_cluster_cpu_share": round(idle, 3),
            "calls_per_batch": 6,
        }
    finally:
        ray.shutdown()


@contextmanager
def on_redis(sync: str, config: QueueConfig) -> Iterator[tuple[RedisServer, RedisReplayQueue]]:
    options = ("--appendfsync", sync, "--auto-aof-rewrite-min-size", "256mb")
    with redis_server(*options) as server:
        connection = server.connect()
        mint = lambda ordinal: SOURCE.ticket(ordinal).to_bytes()  # noqa: E731
        queue = RedisReplayQueue(connection, "benchmark", mint)
        queue.open(config, "the benchmark", "a run")
        yield server, queue
        connection.close()


def through_redis(sync: str) -> dict[str, Any]:
    with on_redis(sync, CONFIG) as (server, queue):
        figures = measure(lambda: client_batch(queue), 200, cpu_of_all_processes)
        version = server.client().info("server")["redis_version"]
        return figures | {"redis_version": version, "calls_per_batch": 6}


def with_groups_waiting(groups: int, payload: bytes) -> dict[str, Any]:
    """The cost while so many groups wait to be scored: async mode, so that new ones may pass."""
    config = QueueConfig(
        groups_per_step=65536, block=BATCH, lag=groups // 65536 + 1, mode="async", score_ttl=86400
    )
    with on_redis("no", config) as (server, queue):
        waiting = 0
        while waiting < groups:
            leases = queue.lease("to_sample", 16, None, "w")
            queue.complete([(lease.id, payload) for lease in leases])
            waiting += len(leases)
        figures = measure(lambda: client_batch(queue), 100, cpu_of_all_processes)
        memory = server.client().info("memory")["used_memory"]
        return figures | {
            "groups_waiting": groups,
            "payload_of_waiting_bytes": len(payload),
            "redis_memory_mb": round(memory / 1e6),
        }


def main() -> None:
    state = QueueState(CONFIG, lambda ordinal: SOURCE.ticket(ordinal).to_bytes())
    results = {
        "command": "python -m benchmarks.replay_queue",
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "ray": ray.__version__,
        "batch_groups": BATCH,
        "payload_bytes": len(PAYLOAD),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
        "pure_state_machine": measure(lambda: pure_batch(state), 500, time.process_time),
        "through_ray": through_ray(),
        "through_redis_fsync_always": through_redis("always"),
        "through_redis_fsync_everysec": through_redis("everysec"),
        "through_redis_fsync_none_by_groups_waiting": [
            with_groups_waiting(groups, b"x" * 64) for groups in (1_000, 100_000, 1_000_000)
        ],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
