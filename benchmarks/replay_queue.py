"""What the replay queue costs: CPU seconds a group, from ticket to ack, and how that grows.

One driver plays all roles: for each batch of 16 groups it leases and completes `to_sample` and
`to_score` with 16 KB payloads, leases `to_train` and acks: six calls, in which each payload travels
once in each direction. Measured are

- the bare state machine: no process, no wire;
- the queue in memory as a run uses it: a Ray actor, asked over direct connections. The CPU of every
  process counts: driver, actor, raylet, GCS and the rest, and what the idle cluster burns in the
  same time is given beside it;
- the same with every call through Ray, which is what it was before, as a reference;
- the queue on Redis, with `appendfsync always` and `everysec`: driver and redis-server;
- the state machine and Redis (without fsync) again, while more and more groups wait.

    python -m benchmarks.replay_queue [memory] [redis] [memory_1000] ... [redis_1000000]

writes benchmarks/results/queue.json, by parts; without a name all of them.

(The file is not called queue.py: a script beside it would import it for the standard library's.)
"""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from replay.config import QueueConfig
from replay.queue import ReplayQueue, Stage
from replay.queue_actor import QueueActor
from replay.ray_client import RayReplayQueue
from replay.redis_queue import RedisReplayQueue
from replay.state import QueueState
from replay.tickets import TicketSource
from tests.redis_server import RedisServer, redis_server

RESULTS = Path(__file__).parent / "results" / "queue.json"
BATCH = 16
PAYLOAD = os.urandom(16 * 1024)
REPEATS = 15
WAITING = (1_000, 10_000, 100_000, 1_000_000)
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


def cpu_by_process() -> dict[str, float]:
    """CPU seconds of this process and its descendants, by what they are.

    Those that have ended count with the parent that has waited for them.
    """
    parents, used, names = {}, {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    seconds = {"driver": 0.0, "actor": 0.0, "others": 0.0}
    for pid in family:
        is_actor = names[pid].startswith(b"ray::QueueActor")
        role = "driver" if pid == os.getpid() else "actor" if is_actor else "others"
        seconds[role] += used[pid] / os.sysconf("SC_CLK_TCK")
    return seconds


def cpu_of_all_processes() -> float:
    """CPU seconds of this process and its descendants."""
    return sum(cpu_by_process().values())


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


def in_a_ray_actor() -> dict[str, Any]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        handle = ray.remote(QueueActor).options(num_cpus=0).remote(CONFIG, SOURCE)
        direct, through_ray = RayReplayQueue(handle), RayReplayQueue(handle)
        through_ray._try_again_at = math.inf
        direct.stats()
        time.sleep(5)  # let the cluster finish starting
        wall, used = time.perf_counter(), cpu_of_all_processes()
        time.sleep(5)
        idle = (cpu_of_all_processes() - used) / (time.perf_counter() - wall)
        results: dict[str, Any] = {"idle_cluster_cpu_share": round(idle, 3)}
        for name, queue, batches in (
            ("direct", direct, 400),
            ("all_through_ray", through_ray, 150),
        ):
            before = cpu_by_process()
            figures = measure(partial(client_batch, queue), batches, cpu_of_all_processes)
            after, groups = cpu_by_process(), (REPEATS * batches + 1) * BATCH
            figures |= {
                f"{role}_us_per_group": round((after[role] - before[role]) / groups * 1e6, 1)
                for role in after
            }
            share = round(idle * figures["wall_us_per_group"], 1)
            results[name] = figures | {"of_which_idle_cluster_us_per_group": share}
        return results
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


def growing(groups: int) -> QueueConfig:
    """Async mode, so that new groups may pass those that wait to be scored."""
    return QueueConfig(
        groups_per_step=65536, block=BATCH, lag=groups // 65536 + 1, mode="async", score_ttl=86400
    )


def state_machine_with_groups_waiting(groups: int) -> dict[str, Any]:
    state = QueueState(growing(groups), lambda ordinal: SOURCE.ticket(ordinal).to_bytes())
    while len(state._items) < groups:
        for lease in state.lease(Stage.TO_SAMPLE, 16, None, "w", 0.0):
            state.complete(lease.id, b"x" * 64, 0.0)
    figures = measure(lambda: pure_batch(state), 200, time.process_time)
    return (
        figures
        | {"groups_waiting": groups}
        | times_of(
            lambda: state.stats(time.monotonic()),
            lambda: state.restart(state.frontier(), time.monotonic()),
        )
    )


def redis_with_groups_waiting(groups: int) -> dict[str, Any]:
    with on_redis("no", growing(groups)) as (server, queue):
        waiting = 0
        while waiting < groups:
            leases = queue.lease("to_sample", 64, None, "w")
            queue.complete([(lease.id, b"x" * 64) for lease in leases])
            waiting += len(leases)
        rewrites = rewrites_done(server)
        figures = measure(lambda: client_batch(queue), 100, cpu_of_all_processes)
        memory = server.client().info("memory")["used_memory"]
        return (
            figures
            | {"groups_waiting": groups, "redis_memory_mb": round(memory / 1e6)}
            | {"log_rewrites_meanwhile": rewrites_done(server) - rewrites}
            | times_of(queue.stats, lambda: queue.restart(queue.frontier()))
        )


def rewrites_done(server: RedisServer) -> int:
    """How often it has rewritten its append-only file, once it is not about to.

    A child of its own does that, its only kind: what it costs belongs to the groups that came
    before.
    """
    client = server.client()
    while True:
        told = client.info("persistence")
        if not told["aof_rewrite_in_progress"] and not told["aof_rewrite_scheduled"]:
            return int(client.info("stats")["total_forks"])
        time.sleep(0.1)


def times_of(stats: Callable[[], object], restart: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of what is asked once a second, and when a learner resumes."""
    walls = []
    for call, repeats in ((stats, 21), (restart, 1)):
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        walls.append(round(statistics.median(seconds) * 1e3, 3))
    return {"stats_ms": walls[0], "restart_ms": walls[1]}


def in_memory() -> dict[str, Any]:
    state = QueueState(CONFIG, lambda ordinal: SOURCE.ticket(ordinal).to_bytes())
    bare = measure(lambda: pure_batch(state), 500, time.process_time)
    return {"pure_state_machine": bare, "in_a_ray_actor": in_a_ray_actor()}


def on_a_redis() -> dict[str, Any]:
    return {f"fsync_{sync}": through_redis(sync) for sync in ("always", "everysec")}


PARTS: dict[str, Callable[[], Any]] = {
    "memory": in_memory,
    "redis": on_a_redis,
    **{f"memory_{n}": partial(state_machine_with_groups_waiting, n) for n in WAITING},
    **{f"redis_{n}": partial(redis_with_groups_waiting, n) for n in WAITING},
}


def cpu_model() -> str:
    """As Linux names it; else the architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main(parts: Sequence[str]) -> None:
    for part in parts:
        load = os.getloadavg()[0]
        figures = PARTS[part]()
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results |= {
            "machine": f"{os.cpu_count()} × {cpu_model()}, {platform.system()}",
            "python": platform.python_version(),
            "ray": ray.__version__,
            "batch_groups": BATCH,
            "payload_bytes": len(PAYLOAD),
        }
        results[part] = {
            "command": f"python -m benchmarks.replay_queue {part}",
            "load_average_before": round(load, 2),
            "figures": figures,
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(part, json.dumps(results[part], indent=2), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
