"""Named model sizes, from a test's to the paper's."""

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from vision.models.config import ModelConfig, ModelConfigError, Trunk

_VIT_S = Trunk(depth=12, width=384, heads=6, mlp_dim=1536)
_VIT_B = Trunk(depth=12, width=768, heads=12, mlp_dim=3072)
_VIT_L = Trunk(depth=24, width=1024, heads=16, mlp_dim=4096)


def _vit(trunk: Trunk, decoder_depth: int) -> dict[str, Any]:
    return {
        "stem": "patch",
        "patch_size": 16,
        "encoder": trunk,
        "decoder": replace(trunk, depth=decoder_depth),
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The size of the golden files: for tests.
    "tiny": {
        "stem": "patch",
        "patch_size": 8,
        "encoder": Trunk(depth=2, width=64, heads=4, mlp_dim=128),
        "decoder": Trunk(depth=2, width=64, heads=4, mlp_dim=128),
    },
    # Learns small scenes in minutes on a laptop, where a plain patch embedding does not.
    "quickstart": {
        "stem": "conv",
        "patch_size": 8,
        "encoder": Trunk(depth=2, width=128, heads=4, mlp_dim=512),
        "decoder": Trunk(depth=2, width=128, heads=4, mlp_dim=512),
        "positions": "sincos",
    },
    "vit_s16": _vit(_VIT_S, 12),
    "vit_b16": _vit(_VIT_B, 12),
    "vit_b16_dec6": _vit(_VIT_B, 6),  # the paper's detection and captioning
    "vit_l16": _vit(_VIT_L, 24),  # the paper's panoptic segmentation and colorization (UViM)
    "vit_l16_dec6": _vit(_VIT_L, 6),
}


def preset(name: str) -> dict[str, Any]:
    """The settings of `ModelConfig` that a preset fixes."""
    if name not in PRESETS:
        raise ModelConfigError(_unknown("model preset", name, PRESETS))
    return dict(PRESETS[name])


def model_config(
    name: str,
    *,
    vocabulary_size: int,
    max_length: int,
    image_size: tuple[int, int],
    ordered_tokens: tuple[int, int] | None = None,
    **overrides: Any,
) -> ModelConfig:
    """A preset at a task's sizes, with some of its settings replaced.

    Args:
      overrides: fields of `ModelConfig`. `encoder` and `decoder` may be mappings that replace
        some of the trunk's fields, for example `decoder={"depth": 3}`.
    Raises:
      ModelConfigError: an unknown preset or setting (the nearest known one is named), or settings
        that do not fit together.
    """
    settings = preset(name)
    known = [field.name for field in fields(ModelConfig)]
    for key, value in overrides.items():
        if key not in known:
            raise ModelConfigError(_unknown("model setting", key, known))
        if key in ("encoder", "decoder") and isinstance(value, Mapping):
            value = _replace_trunk(key, settings[key], value)
        settings[key] = value
    return ModelConfig(
        vocabulary_size=vocabulary_size,
        max_length=max_length,
        image_size=(image_size[0], image_size[1]),
        ordered_tokens=ordered_tokens,
        **settings,
    )


def _replace_trunk(which: str, trunk: Trunk, changes: Mapping[str, Any]) -> Trunk:
    known = [field.name for field in fields(Trunk)]
    for key in changes:
        if key not in known:
            raise ModelConfigError(_unknown(f"setting of the {which}", key, known))
    return replace(trunk, **changes)


def _unknown(what: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"unknown {what} {name!r}; did you mean {near[0]!r}? Known: {', '.join(known)}"
