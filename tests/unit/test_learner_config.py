import pytest
from pydantic import ValidationError

from learner.config import (
    OptimizerConfig,
    PretrainConfig,
    ReinforceConfig,
    StageOneConfig,
    TuneConfig,
)

CONFIGS = [OptimizerConfig, PretrainConfig, ReinforceConfig, StageOneConfig, TuneConfig]


@pytest.mark.parametrize("config", CONFIGS)
def test_an_unknown_key_is_refused(config):
    with pytest.raises(ValidationError, match="lerning_rate"):
        config.model_validate({"lerning_rate": 1e-3})


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (OptimizerConfig, {"learning_rate": 0}, "learning_rate"),
        (OptimizerConfig, {"name": "sgd"}, "adafactor"),
        (OptimizerConfig, {"multipliers": [["encoder/(", 0.1]]}, r"'encoder/\(' is not a regular"),
        (PretrainConfig, {"batch_size": 6, "microbatches": 4}, "multiple of microbatches"),
        (PretrainConfig, {"batch_size": 6, "devices": 4}, "multiple of microbatches"),
        (PretrainConfig, {"steps": 10, "optimizer": {"warmup_steps": 10}}, "must be below steps"),
        (ReinforceConfig, {"clip": 0.2, "max_importance_weight": 2}, "set one of them to null"),
        (ReinforceConfig, {"use_samples": "some"}, "one"),
        (TuneConfig, {"samples_per_group": 1}, "samples_per_group"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_what_would(config, values, message):
    with pytest.raises(ValidationError, match=message):
        config.model_validate(values)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_says_what_it_means(config):
    missing = [name for name, field in config.model_fields.items() if not field.description]
    assert not missing
