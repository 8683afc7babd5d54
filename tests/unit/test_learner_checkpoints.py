import resource
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner.checkpoints import CheckpointError, Checkpoints
from learner.config import OptimizerConfig
from learner.mesh import make_mesh
from learner.optimizer import make_optimizer
from learner.train_state import LossSums, create_train_state, make_train_step


def small_params(width=40):
    return {
        "encoder": {"kernel": jnp.full((width, 64), 0.1), "bias": jnp.zeros(64)},
        "head": {"kernel": jnp.full((64, 1), 0.1)},
    }


def make_state(name="adafactor", width=40):
    params = small_params(width)
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=1e-2), 100, params)
    return create_train_state(params, optimizer), optimizer


def at_step(state, step):
    return state._replace(
        step=jnp.int32(step), params=jax.tree.map(lambda x: jnp.full_like(x, step), state.params)
    )


def loss(params, batch, frozen):
    hidden = jnp.tanh(batch @ params["encoder"]["kernel"] + params["encoder"]["bias"])
    error = ((hidden @ params["head"]["kernel"])[:, 0] - batch.sum(1)) ** 2
    return LossSums(error.sum(), jnp.float32(len(batch)), {}, {})


def batch(step):
    return np.random.default_rng(step).normal(size=(4, 40)).astype(np.float32)


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_a_resumed_run_ends_bitwise_where_an_uninterrupted_one_does(tmp_path, name):
    state, optimizer = make_state(name)
    step = make_train_step(loss, optimizer, make_mesh())
    record = {"frontier": {"next_unacked": 12, "acked_above": [14, 15]}, "seed": 2**63 + 1}
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(6):
            state, _ = step(state, batch(number))
            if number == 2:
                # Training goes on, into the same buffers, while this is written.
                checkpoints.save(state, record)
    with Checkpoints(tmp_path) as checkpoints:
        resumed, extra = checkpoints.restore(make_state(name)[0])
    assert int(resumed.step) == 3
    assert extra == record
    for number in range(3, 6):
        resumed, _ = step(resumed, batch(number))
    assert_equal(resumed, state)


def test_the_newest_and_the_best_are_kept(tmp_path):
    state, _ = make_state()
    scores = {1: 0.5, 2: 0.9, 3: 0.1, 4: None, 5: 0.3, 6: None}
    with Checkpoints(tmp_path, keep=2, best_metric="mAP") as checkpoints:
        for number, score in scores.items():
            metrics = None if score is None else {"mAP": score, "AR100": 1.0}
            assert checkpoints.save(at_step(state, number), {}, metrics)
        assert not checkpoints.save(at_step(state, 6), {})
        checkpoints.wait()
    with Checkpoints(tmp_path, keep=2, best_metric="mAP") as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2
        assert checkpoints.latest_step() == 6
        step, params = checkpoints.restore_params(state.params, "best")
        assert step == 2
        assert_equal(params, at_step(state, 2).params)
        assert checkpoints.restore_params(state.params)[0] == 6
        assert int(checkpoints.restore(state, 5)[0].step) == 5


def test_without_metrics_the_best_is_the_newest(tmp_path):
    state, _ = make_state()
    with Checkpoints(tmp_path, best_metric="mAP") as checkpoints:
        assert checkpoints.best_step() is None
        checkpoints.save(at_step(state, 3), {})
        checkpoints.wait()
        assert checkpoints.best_step() == 3


def test_a_checkpoint_that_does_not_fit_names_what_and_how(tmp_path):
    state, _ = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {})
        checkpoints.wait()
        with pytest.raises(
            CheckpointError, match=r"encoder/kernel has shape \(40, 64\).*\(8, 64\)"
        ):
            checkpoints.restore(make_state(width=8)[0])
        with pytest.raises(CheckpointError, match=r"optimizer_state: .* is missing"):
            checkpoints.restore(make_state("adamw")[0])
        with pytest.raises(CheckpointError, match="the model has no head/kernel"):
            checkpoints.restore_params({"encoder": state.params["encoder"]})
        with pytest.raises(CheckpointError, match=r"tail \(3,\) is missing"):
            checkpoints.restore_params(state.params | {"tail": jnp.zeros(3)})


def test_a_checkpoint_of_tokens_with_other_names_is_not_restored(tmp_path):
    state, _ = make_state()
    for names, refused in [(None, False), (["a", "b"], False), (["b", "a"], True), (None, False)]:
        with Checkpoints(tmp_path, token_names=names) as checkpoints:
            if not refused:
                checkpoints.save(at_step(state, len(checkpoints.steps())), {"digest": "x"})
                checkpoints.wait()
                assert checkpoints.restore(state)[1] == {"digest": "x"}
            else:
                with pytest.raises(CheckpointError, match="tokens that stand for something else"):
                    checkpoints.restore(state)


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path):
    state, _ = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            checkpoints.restore(state)
        checkpoints.save(at_step(state, 1), {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .* \[1\]"):
            checkpoints.restore(state, 7)


def test_a_damaged_checkpoint_is_named(tmp_path):
    state, _ = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {})
    data = [f for f in tmp_path.rglob("*") if f.is_file() and f.parent.name == "d"]
    assert data
    for file in data:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=f"{tmp_path}/1 cannot be read"),
    ):
        checkpoints.restore(state)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match=f"cannot write checkpoints to {file}/run"):
        Checkpoints(file / "run")


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    state, _ = make_state()
    usage = namedtuple("usage", "total used free")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {})
        checkpoints.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 500, 500))
        with pytest.raises(CheckpointError, match=r"is full: a checkpoint needs 0\.0 MB"):
            checkpoints.save(at_step(state, 2), {})
        monkeypatch.undo()
        assert checkpoints.steps() == [1]


def save_and_wait(checkpoints, state):
    checkpoints.save(state, {})
    checkpoints.wait()


@pytest.fixture
def files_of_20_kilobytes():
    """As a full disk does, this fails writes in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_halfway_is_raised_and_leaves_no_checkpoint(
    tmp_path, files_of_20_kilobytes
):
    state, _ = make_state()
    noise = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    large = state._replace(step=jnp.int32(2), params={"noise": jnp.asarray(noise)})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(at_step(state, 1), {})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=r"not written to .*whole: \[1\].*too large"):
        save_and_wait(checkpoints, large)
    checkpoints.close()
    with Checkpoints(tmp_path) as again:
        assert again.steps() == [1]
        assert int(again.restore(state)[0].step) == 1
