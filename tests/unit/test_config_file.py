"""Configs from files: inheritance, overrides, and errors that say what would be right."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.config import RunConfig
from deploy.config_file import ConfigError, dotted_keys, read_config


class Term(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str
    weight: float = 1.0


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    terms: list[Term] = []
    size: tuple[int, int] = (4, 4)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    seed: int = Field(0, ge=0)
    learner: Section = Section()
    other: Section | None = None


def write(directory: Path, text: str, name: str = "run.yaml") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read(path: Path, *overrides: str) -> Settings:
    return read_config(path, overrides, Settings)


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, *overrides)
    return str(caught.value)


TWO_TERMS = "name: a\nlearner: {terms: [{path: 'x:Y'}, {path: 'x:Z', weight: 2}]}\n"


def test_overrides_change_nested_values_and_are_read_as_yaml(tmp_path):
    path = write(tmp_path, "name: a\nlearner: {rate: 0.5}\n")
    config = read(path, "learner.rate=1e-05", "seed=7", "learner.size=[2, 3]")
    assert (config.learner.rate, config.seed, config.learner.size) == (1e-5, 7, (2, 3))


def test_the_last_override_of_a_key_holds(tmp_path):
    assert read(write(tmp_path, "name: a\n"), "seed=1", "seed=2").seed == 2


def test_overrides_make_sections_that_the_file_lacks(tmp_path):
    config = read(write(tmp_path, "name: a\nother:\n"), "other.rate=0.25")
    assert config.other is not None
    assert config.other.rate == 0.25


def test_an_override_may_hold_an_equals_sign(tmp_path):
    assert read(write(tmp_path, "name: a\n"), "name='b=c'").name == "b=c"


def test_overrides_reach_into_lists_by_position(tmp_path):
    config = read(write(tmp_path, TWO_TERMS), "learner.terms.1.weight=0.5")
    assert [term.weight for term in config.learner.terms] == [1.0, 0.5]
    config = read(write(tmp_path, TWO_TERMS), "learner.terms.0={path: 'a:B'}")
    assert [term.path for term in config.learner.terms] == ["a:B", "x:Z"]


@pytest.mark.parametrize("position", ["2", "first", "-1"])
def test_a_position_that_a_list_lacks_is_an_error_with_the_range(tmp_path, position):
    message = fault(write(tmp_path, TWO_TERMS), f"learner.terms.{position}.weight=1")
    assert position in message
    assert "0 to 1" in message


@pytest.mark.parametrize("override", ["seed", "=3", ""])
def test_an_override_without_key_or_value_says_how_to_write_one(tmp_path, override):
    assert "key.path=value" in fault(write(tmp_path, "name: a\n"), override)


def test_an_override_below_a_plain_value_is_an_error(tmp_path):
    message = fault(write(tmp_path, "name: a\nseed: 3\n"), "seed.more=1")
    assert "'seed' is a value, not a section" in message


def test_an_override_that_is_not_yaml_is_an_error(tmp_path):
    assert "not valid YAML" in fault(write(tmp_path, "name: a\n"), "learner.size=[1, 2")


def test_extends_merges_sections_and_replaces_lists(tmp_path):
    write(tmp_path, TWO_TERMS + "seed: 3\n", "base/base.yaml")
    path = write(
        tmp_path,
        "extends: ../base/base.yaml\nname: b\nlearner: {rate: 0.5, terms: [{path: 'q:R'}]}\n",
        "child/run.yaml",
    )
    config = read(path)
    assert (config.name, config.seed, config.learner.rate) == ("b", 3, 0.5)
    assert [term.path for term in config.learner.terms] == ["q:R"]


def test_extends_goes_over_several_files(tmp_path):
    write(tmp_path, "name: a\nseed: 1\nlearner: {rate: 0.1}\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\nseed: 2\n", "b.yaml")
    config = read(write(tmp_path, "extends: b.yaml\nname: c\n", "c.yaml"))
    assert (config.name, config.seed, config.learner.rate) == ("c", 2, 0.1)


def test_a_section_can_be_taken_away_by_null(tmp_path):
    write(tmp_path, "name: a\nother: {rate: 0.5}\n", "a.yaml")
    assert read(write(tmp_path, "extends: a.yaml\nother: null\n", "b.yaml")).other is None


@pytest.mark.parametrize(
    "files", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}]
)
def test_configs_that_extend_each_other_are_an_error_not_a_loop(tmp_path, files):
    for name, parent in files.items():
        write(tmp_path, f"extends: {parent}.yaml\nname: {name}\n", f"{name}.yaml")
    assert "extends itself" in fault(tmp_path / "a.yaml")


def test_a_missing_parent_is_named(tmp_path):
    assert "gone.yaml" in fault(write(tmp_path, "extends: gone.yaml\nname: a\n"))


def test_a_missing_file_names_the_presets_nearest_to_it():
    message = fault(Path("quickstart/detection_mpa.yaml"))
    assert "no such config file" in message
    assert "configs/quickstart/detection_map.yaml" in message


def test_presets_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("configs/quickstart/detection_map.yaml", "quickstart/detection_map.yaml"):
        assert read_config(path, [], RunConfig).name == "detection_map"


@pytest.mark.parametrize("text", ["name: [a\n", "name: 'a\n", "\tname: a\n"])
def test_text_that_is_not_yaml_is_an_error_naming_the_file(tmp_path, text):
    message = fault(write(tmp_path, text))
    assert "not valid YAML" in message
    assert "run.yaml" in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_yaml_that_is_no_mapping_is_an_error(tmp_path, text):
    assert "not a mapping of settings" in fault(write(tmp_path, text))


def test_an_unknown_key_names_the_nearest(tmp_path):
    message = fault(write(tmp_path, "name: a\nlearner: {rat: 0.5}\n"))
    assert "learner.rat: unknown key; did you mean 'rate'?" in message


def test_an_unknown_key_of_a_list_entry_names_the_nearest(tmp_path):
    message = fault(write(tmp_path, TWO_TERMS), "learner.terms.1.wieght=2")
    assert "wieght" in message
    assert "did you mean 'weight'?" in message


def test_a_key_in_the_wrong_section_names_the_right_one(tmp_path):
    message = fault(write(tmp_path, "name: a\nrate: 0.5\n"))
    assert "did you mean 'learner.rate'?" in message


def test_a_key_like_no_other_lists_what_there_is(tmp_path):
    message = fault(write(tmp_path, "name: a\nxyzzy: 1\n"))
    assert "the top level has learner, name, other, seed" in message


def test_a_value_out_of_range_says_the_range_and_what_was_given(tmp_path):
    message = fault(write(tmp_path, "name: a\n"), "learner.rate=3")
    assert "learner.rate" in message
    assert "less than or equal to 1" in message
    assert "given: 3" in message


def test_a_missing_value_is_named(tmp_path):
    assert "name: Field required" in fault(write(tmp_path, "seed: 1\n"))


def test_all_faults_are_reported_at_once(tmp_path):
    text = "name: a\nseed: -1\nlearner: {rate: 2.0, sise: [1, 2]}\n"
    message = fault(write(tmp_path, text))
    assert "seed" in message
    assert "learner.rate" in message
    assert "did you mean 'size'?" in message


def test_sections_that_do_not_fit_together_say_what_would_go_wrong(tmp_path):
    overrides = ["actors.groups_per_block=5", "learner.groups_per_step=16"]
    with pytest.raises(ConfigError, match=r"groups_per_block is 5.*the block must divide it"):
        read_config("quickstart/detection_map.yaml", overrides, RunConfig)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learner.optimizer.learning_rat", "learning_rate"),
        ("learner.sampels_per_group", "samples_per_group"),
        ("task.data.drop_anotations", "drop_annotations"),
        ("actors.resources.num_cpu", "num_cpus"),
        ("rewards.terms.0.option", "options"),
        ("replays", "replay"),
    ],
)
def test_unknown_keys_of_a_run_name_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        read_config("quickstart/detection_map.yaml", [f"{key}=1"], RunConfig)


def test_a_key_of_another_kind_of_section_does_not_name_itself():
    changes = ["task={kind: colorization, data: {kind: photos, cache_dir: a}}"]
    with pytest.raises(ConfigError, match=r"task\.data\.cache_dir: unknown key; task\.data has"):
        read_config("quickstart/detection_map.yaml", changes, RunConfig)


def test_every_key_of_a_run_is_known_by_its_dotted_name():
    keys = set(dotted_keys(RunConfig))
    assert {"seed", "learner.optimizer.beta2_cap", "rewards.terms.path", "task.data.train"} <= keys


def test_async_publishing_slower_than_the_staleness_bound_is_refused():
    overrides = ["replay.mode=async", "replay.max_policy_lag=2", "learner.publish_every=4"]
    with pytest.raises(ConfigError, match="too old to train before a new policy is published"):
        read_config("quickstart/detection_map.yaml", overrides, RunConfig)


def test_paths_become_absolute_so_that_every_process_means_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config("quickstart/detection_map.yaml", [], RunConfig).with_absolute_paths()
    assert config.runs == tmp_path / "runs"
    assert config.initial.is_file()


@pytest.mark.parametrize("name", [".", "..", ".hidden", "-x", "a/b", ""])
def test_a_runs_name_is_a_directory_of_its_own_below_runs(tiny_values, name):
    with pytest.raises(ValidationError, match="name"):
        RunConfig.model_validate(tiny_values | {"name": name})
