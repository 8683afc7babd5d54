"""Which engine samples, and whether this machine can run it."""

from importlib.util import find_spec
from typing import Any

import numpy as np

from actors.config import SamplerConfig
from actors.engine import Engine
from vision.models.config import ModelConfig


class EngineUnavailable(RuntimeError):
    """The engine that a config asks for cannot run here."""


def check_engine(config: SamplerConfig) -> None:
    """Raises `EngineUnavailable` when the engine's library is not installed; imports nothing."""
    if config.chosen_engine == "torch" and find_spec("torch") is None:
        chosen = "" if config.engine == "torch" else ", which means torch where samplers have GPUs"
        raise EngineUnavailable(
            f"actors.engine is {config.engine}{chosen}, but torch is not installed: "
            "pip install 'rewardtune[torch]', or set actors.engine=jax"
        )


def build_engine(
    config: SamplerConfig,
    model: ModelConfig,
    allowed_tokens: np.ndarray,
    end_token: int,
    end_token_bias: float = 0.0,
    gpu_expected: bool = False,
) -> Engine:
    """The engine of a config.

    Args:
      allowed_tokens, end_token, end_token_bias: see `JaxEngine`.
      gpu_expected: whether to refuse to sample with torch on a CPU: this process was given a GPU,
        which would stand idle.
    Raises:
      EngineUnavailable: its library is not installed, or finds no CUDA device where one is meant.
    """
    check_engine(config)
    settings: dict[str, Any] = {
        "config": model,
        "allowed_tokens": allowed_tokens,
        "end_token": end_token,
        "temperature": config.temperature,
        "end_token_bias": end_token_bias,
    }
    if config.chosen_engine == "jax":
        from actors.jax_engine import JaxEngine

        return JaxEngine(**settings)
    import torch

    from actors.torch_engine import TorchEngine

    if gpu_expected and not torch.cuda.is_available():
        raise EngineUnavailable(
            f"actors.engine is {config.engine} and actors.resources.num_gpus "
            f"{config.resources.num_gpus}, but torch {torch.__version__} finds no CUDA device here:"
            " install a build of torch with CUDA, set actors.engine=jax, or give samplers no GPU"
        )
    return TorchEngine(**settings, cuda_graphs=config.cuda_graphs)
