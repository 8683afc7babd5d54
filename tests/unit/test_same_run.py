"""Who joins a run with another config is told which setting differs."""

import pytest

from deploy.config import RunConfig
from deploy.config_file import ConfigError
from deploy.same_run import OTHER_HARDWARE, check_same_run
from tests.runs import changed


def test_a_setting_that_the_numbers_depend_on_is_named_with_both_values(tiny_values):
    run = RunConfig.model_validate(tiny_values)
    check_same_run(run, run, "the run")
    changes = {
        "learner.samples_per_group": 3,
        "rewards.terms": [{"path": "tests.odd_rewards:SlowReward", "options": {"seconds": 1}}],
        "seed": 7,
        "name": "another",
    }
    for name, value in changes.items():
        other = RunConfig.model_validate(changed(tiny_values, {name: value}))
        with pytest.raises(ConfigError, match=rf"not that of the run.*: {name} is .*, in the run"):
            check_same_run(other, run, "the run")


def test_what_changes_no_number_and_where_files_lie_may_differ(tiny_values):
    run = RunConfig.model_validate(tiny_values)
    here = {"rewards.count": 9, "initial": "/elsewhere/initial.npz", "runs": "/elsewhere"}
    check_same_run(RunConfig.model_validate(changed(tiny_values, here)), run, "the run")


def test_other_hardware_is_allowed_to_those_who_say_so(tiny_values):
    run = RunConfig.model_validate(tiny_values)
    other = RunConfig.model_validate(changed(tiny_values, {"learner.devices": 2}))
    with pytest.raises(ConfigError, match=r"learner\.devices is 2, in the run 1"):
        check_same_run(other, run, "the run")
    check_same_run(other, run, "the run", may_differ=OTHER_HARDWARE)
