"""A learner outside of Ray: it trains a run through the run's edges."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.joining import check_task, joined_config
from deploy.logs import log_to_stderr
from deploy.processes import build_learner, load_initial
from deploy.queues import traced_queue
from deploy.run_directory import open_run_directory
from deploy.runs import prepare_data
from learner.hosts import join, leave
from learner.packed_weights import VersionNotHeld
from learner.remote_weights import RemoteWeights
from learner.stop import StopRequest, TrainingInterrupted
from learner.supervised import CHECKPOINTS_DIRECTORY
from protos.edge_client import Peer
from replay.queue import QueueClosed, ReplayQueue
from replay.remote_queue import RemoteReplayQueue
from vision.models.checkpoint import load_npz, save_npz
from vision.tasks.registry import build_task
from vision.tasks.task import Task, token_names

INITIAL_FILE = "initial.npz"


def learn(
    replay: Peer,
    weights: Peer,
    directory: Path,
    config: str | None,
    overrides: Sequence[str],
    start_over: bool = False,
    host: int = 0,
    coordinator: str | None = None,
) -> dict[str, Any]:
    """Trains to the last step, and ends the run; the same call resumes. Returns the final status.

    Of a learner of several hosts each makes this call, with its own index. When one is lost the
    others end too, and the same calls resume.

    Args:
      replay: the run's queue.
      weights: its weight store.
      directory: where this learner keeps its checkpoints and metrics; of several hosts the first
        one keeps them, another one only what it begins from, in a directory below.
      config: a file; None: the config that the queue's server has.
      overrides: changes to it. What the numbers depend on must be as in the run.
      start_over: without a checkpoint, begin a run anew that has been trained already.
      host: which of `learner.hosts` this is, from 0.
      coordinator: of several hosts, HOST:PORT of the first one, for the others; a free port.

    Raises:
      TrainingInterrupted: asked to stop, or the run was ended.
      ConfigError: the queue is of another run than the config, or its data is another here, or
        its run has been trained for some steps that the directory knows nothing of.
      HostLost: another host is gone.
      LearnerFenced, QueueUnavailable, WeightsUnavailable, ...: what ended it.
    """
    queue, store = RemoteReplayQueue(replay), RemoteWeights(weights)
    with ExitStack() as connections, StopRequest() as stop:
        connections.callback(queue.disconnect)
        connections.callback(store.disconnect)
        served = queue.run()
        run = joined_config(served, replay.address, config, overrides)
        name = run.name
        check_host(run, host, coordinator)
        hosts = join(host, run.learner.hosts, coordinator)
        if not hosts.first:
            directory /= f"host-{host}"
        # Its directory is this learner's own: the run's may be on another machine.
        run = run.model_copy(update={"runs": directory.parent, "name": directory.name})
        prepare_data(run)
        task = build_task(run.task)
        check_task(task, served, replay.address)
        with open_run_directory(run):
            if hosts.first and not start_over:
                check_goes_on(directory, queue, store)
            initial = _initial(run, task, store, directory)
            named = run.model_copy(update={"name": name})
            log_to_stderr(named, "learner")
            traced, send_spans = traced_queue(named, directory, "learner", queue)
            learner = build_learner(named, task, traced, store, directory, initial, hosts)
            try:
                result: dict[str, Any] = learner.run(stop)
                leave(hosts)
            except QueueClosed as error:
                step = learner.status["step"]
                raise TrainingInterrupted(
                    f"the run was ended at step {step}, and a checkpoint of it is left: {error}"
                ) from error
            finally:
                send_spans()
        if result["state"] == "finished" and hosts.first:
            with suppress(QueueClosed):  # a repetition: the answer was lost, and the run has ended
                queue.close()
    if result["state"] != "finished":
        raise TrainingInterrupted(
            f"stopped after step {result['step']}; the same command resumes while the run lives"
        )
    return result


def check_host(config: RunConfig, host: int, coordinator: str | None) -> None:
    """Whether this host can be one of the learner's.

    Raises:
      ConfigError: there are not as many, or it cannot find the others.
    """
    count = config.learner.hosts
    if not 0 <= host < count:
        raise ConfigError(
            f"--host {host}: learner.hosts is {count}, so a host is one of 0 .. {count - 1}"
        )
    if count > 1 and coordinator is None:
        raise ConfigError(
            f"learner.hosts is {count}: name with --coordinator HOST:PORT where the others find "
            "host 0, the same on every host"
        )


def check_goes_on(directory: Path, queue: ReplayQueue, store: RemoteWeights) -> None:
    """A learner without a checkpoint would take a run at work back to its first step.

    Raises:
      ConfigError: the run has been trained, and the directory holds no checkpoint.
    """
    kept = directory / CHECKPOINTS_DIRECTORY
    if kept.is_dir() and any(entry.name.isdigit() for entry in kept.iterdir()):
        return
    frontier, newest = queue.frontier(), store.newest_version()
    acked = frontier.next_unacked + len(frontier.acked_above)
    if acked or newest:
        raise ConfigError(
            f"{directory} holds no checkpoint, but the run has {acked} groups trained and its "
            f"newest policy is {newest}: name the --directory that its learner had, or begin the "
            "run anew with --start-over"
        )


def _initial(config: RunConfig, task: Task, store: RemoteWeights, directory: Path) -> Any:
    """What the run starts from: kept here, or the run's version 0, or the config's file."""
    model, kept = config.model.build(task), directory / INITIAL_FILE
    if not kept.is_file():
        try:
            _, params = store.load(0)
        except VersionNotHeld:
            return load_initial(config, model, task)
        save_npz(kept, params, token_names=token_names(task))
    return load_npz(kept, model, token_names(task))
