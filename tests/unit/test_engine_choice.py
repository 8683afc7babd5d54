"""Which engine a config means is one for the whole pool, and known before anything starts."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from actors import engines
from actors.config import SamplerConfig
from actors.engines import EngineUnavailable, build_engine, check_engine
from deploy.checks import check_tune
from deploy.config import RunConfig
from deploy.config_file import read_config
from vision.models.presets import model_config

TINY = model_config("tiny", vocabulary_size=65, max_length=16, image_size=(32, 32))
ALLOWED = np.ones((16, 65), bool)


def sampler_config(engine: str, gpus: float = 0) -> SamplerConfig:
    return SamplerConfig.model_validate({"engine": engine, "resources": {"num_gpus": gpus}})


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("engine", "gpus", "chosen"),
    [
        ("jax", 1, "jax"),
        ("torch", 0, "torch"),
        ("auto", 0, "jax"),
        ("auto", 1, "torch"),
        ("auto", 0.25, "torch"),
    ],
)
def test_auto_means_torch_where_samplers_have_gpus(engine: str, gpus: float, chosen: str) -> None:
    assert sampler_config(engine, gpus).chosen_engine == chosen


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValidationError, match="'jax', 'torch' or 'auto'"):
        sampler_config("tensorflow")


@pytest.mark.parametrize(("engine", "gpus"), [("torch", 0), ("auto", 1)])
def test_torch_that_is_not_there_is_named_with_its_extra(
    no_torch: None, engine: str, gpus: float
) -> None:
    with pytest.raises(EngineUnavailable, match=rf"actors.engine is {engine}.*rewardtune\[torch\]"):
        check_engine(sampler_config(engine, gpus))
    check_engine(sampler_config("jax", gpus))
    check_engine(sampler_config("auto", 0))


def test_a_run_without_its_engine_is_refused_before_anything_starts(no_torch: None) -> None:
    config = read_config("quickstart/detection_map.yaml", ["actors.engine=torch"], RunConfig)
    with pytest.raises(EngineUnavailable, match="torch is not installed"):
        check_tune(config)


def test_a_gpu_does_not_stand_idle_while_torch_samples_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = sampler_config("torch", 1)
    with pytest.raises(EngineUnavailable, match="finds no CUDA device here"):
        build_engine(config, TINY, ALLOWED, -1, gpu_expected=True)
    # An evaluation elsewhere may use the CPU.
    assert type(build_engine(config, TINY, ALLOWED, -1)).__name__ == "TorchEngine"


@pytest.mark.parametrize(("engine", "name"), [("jax", "JaxEngine"), ("torch", "TorchEngine")])
def test_the_engine_that_is_built_is_the_one_that_was_asked_for(engine: str, name: str) -> None:
    assert type(build_engine(sampler_config(engine), TINY, ALLOWED, -1)).__name__ == name


def identity(*overrides: str) -> dict[str, Any]:
    return read_config("quickstart/detection_map.yaml", overrides, RunConfig).identity()


def test_numbers_depend_on_the_engine_and_not_on_how_it_was_chosen() -> None:
    assert identity("actors.engine=auto") == identity("actors.engine=jax") == identity()
    assert identity("actors.engine=torch") != identity()
    assert identity("actors.cuda_graphs=false") == identity()
    assert identity("learner.mismatch_every=3") == identity()
