"""The learner trains its own step's groups, as long as it is the run's learner."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.config import RunConfig
from learner.packed_weights import WeightsUnavailable
from learner.stop import StopRequest
from learner.train_state import create_train_state
from learner.tune import Learner, NothingToTrainError
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.queue import Frontier, LearnerFenced, Lease, QueueClosed
from tests.queues import memory
from vision.models.sequence import init_params
from vision.tasks.registry import build_task


class Publisher:
    """Says what was published, and by whom."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def fence(self, epoch):
        self.said.append(epoch)

    def publish(self, version, params, dtype, last):
        self.said.append(version)


@pytest.fixture(scope="module")
def parts(tiny_values):
    config = RunConfig.model_validate(tiny_values)
    task = build_task(config.task)
    model = config.model.build(task)
    return config, task, model, init_params(model, seed=1)


def make(parts, queue, directory: Path, publisher=None, max_staleness=None) -> Learner:
    config, task, model, initial = parts
    return Learner(
        task=task,
        model_config=model,
        config=config.learner,
        queue=queue,
        weights=publisher or Publisher(),
        run_directory=directory,
        initial=initial,
        identity="tests",
        max_staleness=max_staleness,
        kept_policies=1,
    )


def settings() -> QueueConfig:
    return QueueConfig(groups_per_step=4, block=2, lag=1)


def give_up(queue) -> None:
    """Quarantines what is to be sampled, so that steps are quick."""
    for lease in queue.lease("to_sample", 2, None, "s"):
        queue.fail([(lease.id, "no", FailureKind.DATA)])


def test_a_step_trains_its_own_groups_when_an_answer_of_the_queue_is_lost(parts, tmp_path):
    with memory() as open_queue:
        queue = open_queue(settings())

        class Lossy:
            """Of the first lease for training the answer is lost."""

            lost: list[Lease] | None = None

            def __getattr__(self, method):
                return getattr(queue, method)

            def lease(self, *arguments, **named):
                give_up(queue)
                if self.lost is None:
                    self.lost = queue.lease(*arguments, **named)
                return queue.lease(*arguments, **named)

        publisher, lossy = Publisher(), Lossy()
        learner = make(parts, lossy, tmp_path, publisher)
        with pytest.raises(NothingToTrainError):
            learner.run(StopRequest())
        assert [lease.ordinal for lease in lossy.lost] == [0, 1, 2, 3]
        assert queue.frontier() == Frontier(8)
    # The epoch was known before anything was published with it.
    assert [type(said) for said in publisher.said] == [str, int, int, int]


def test_a_learner_whose_place_is_taken_ends_and_changes_nothing(parts, tmp_path):
    with memory() as open_queue, ThreadPoolExecutor(1) as pool:
        queue, stop = open_queue(settings()), StopRequest()
        learner = make(parts, queue, tmp_path)
        running = pool.submit(learner.run, stop)
        while learner.status["state"] != "waiting":
            assert not running.done(), running.result()
        new = queue.fence()
        with pytest.raises(LearnerFenced, match="another one has taken over"):
            running.result(timeout=60)
        queue.restart(Frontier(), new)


@pytest.mark.parametrize("lost", ["queue", "store"])
def test_a_run_that_ends_costs_a_learner_elsewhere_no_step_that_it_trained(parts, tmp_path, lost):
    with memory() as open_queue:
        queue = open_queue(settings())

        class Ending:
            """Gives up every group, and closes after two steps."""

            def __getattr__(self, method):
                return getattr(queue, method)

            def lease(self, *arguments, **named):
                if queue.frontier().next_unacked == 8:
                    queue.close()
                give_up(queue)
                return queue.lease(*arguments, **named)

        class Gone(Publisher):
            def publish(self, version, params, dtype, last):
                if version == 2 and lost == "store":
                    raise WeightsUnavailable("the weight store does not answer")

        learner = make(parts, Ending(), tmp_path, Gone())
        with pytest.raises(QueueClosed if lost == "queue" else WeightsUnavailable):
            learner.run(StopRequest())
    with learner._open_record() as record:
        state = record.resume(create_train_state(parts[3], learner._optimizer))
    assert (int(state.step), record._frontier) == (2, Frontier(8))
    assert [version for version, _ in record.policies] == [1, 2]


def test_a_checkpoint_holds_its_own_learners_frontier_whoever_has_taken_over(parts, tmp_path):
    with memory() as open_queue:
        queue, stop = open_queue(settings()), StopRequest()

        class TakenOver:
            """Gives up every group; after the first step another learner begins anew."""

            def __getattr__(self, method):
                return getattr(queue, method)

            def lease(self, *arguments, **named):
                give_up(queue)
                return queue.lease(*arguments, **named)

            def ack(self, ordinals, dropped=(), epoch=None):
                queue.ack(ordinals, dropped, epoch)
                queue.restart(Frontier(), queue.fence())
                stop.request()

        learner = make(parts, TakenOver(), tmp_path)
        learner.run(stop)
        assert queue.frontier() == Frontier()
    with learner._open_record() as record:
        state = record.resume(create_train_state(parts[3], learner._optimizer))
    assert (int(state.step), record._frontier) == (1, Frontier(4))


def test_the_first_and_the_last_policy_are_published_exactly(parts, tmp_path):
    config, task, model, initial = parts
    rounded = config.model_copy(
        update={"learner": config.learner.model_copy(update={"weights_dtype": "bfloat16"})}
    )
    publisher, dtypes = Publisher(), []
    publisher.publish = lambda version, params, dtype, last: dtypes.append((version, dtype, last))
    learner = make((rounded, task, model, initial), None, tmp_path, publisher)
    with learner._open_record() as record:
        for version in (0, 1, config.learner.steps):
            record.publish(version, initial)
    assert dtypes == [
        (0, "float32", False),
        (1, "bfloat16", False),
        (config.learner.steps, "float32", True),
    ]
