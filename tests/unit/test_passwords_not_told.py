"""A password that was written where it does not belong is in nothing that a command prints."""

import traceback

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.config import RunConfig
from deploy.config_file import ConfigError, read_config

PRESET = "configs/quickstart/detection_map.yaml"
OVERRIDES = [
    "replay.url=s3cret@h:6379",
    "replay.url=rediss:s3cret@h",
    "replay.url=unix:s3cret@h",
    "replay.url=user:s3cret@host:6379",
    "replay.url=s3cret:6379",
    "replay.url=redis://user:s3cret@h",
    "replay.url=redis://h/s3cret@h",
    "replay.url=redis://user:6#s3cret@h",
    "replay.url=redis://user: s3cret@h",
    "replay.url='redis://user:s3cret@h",
    "replay.url=[redis://user:s3cret@h",
    "replay.url=*s3cret",
    "replay.url=!s3cret h",
    "replay.url=!'s3cret h",
    "replay.url=!%27%22s3cret h",
    "replay.url=redis://user:s3cret@h: 6379",
    "replay.url=a\\b\x00s3cret",
    "replay.url.password=s3cret",
    "replay.url.0=s3cret",
    "replay.password=s3cret",
    "replay=s3cret",
    "replay={url: s3cret@h}",
    "replay={url:s3cret@h}",
    "replay={url: {a: s3cret}}",
    "replay={url: redis://h:1, password_env: [s3cret]}",
    "replay.mode=s3cret",
    "replay.policy_lag=s3cret",
    "replay.url:s3cret@h",
    "tracing.endpoint=https://user:s3cret@h:4318",
    "redis://user:s3cret@h?db=0",
    "redis://user:s3cret@h",
]
FILES = [
    "replay: {url: 'redis://user:s3cret@h}",
    "replay:\n  url: redis://user: s3cret@h",
    "replay:\n  url:redis://user:s3cret@h",
    "replay: {url:redis://user:s3cret@h}",
    "replay:\n  url: user:s3cret@h:6379",
    "replay:\n\turl: s3cret",
    "replay: s3cret",
]
BEGINNING = "name: r\ntask: {kind: detection}\nmodel: {preset: tiny}\n"


def told(*arguments: str) -> str:
    """What a command that cannot be prints: one message."""
    run = CliRunner().invoke(app, list(arguments))
    assert run.exit_code == 1, run.output
    assert isinstance(run.exception, SystemExit)
    assert run.stdout == ""
    assert "s3cret" not in run.output
    return run.stderr


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_that_cannot_be_is_refused_without_the_password_in_it(override):
    assert "rewardtune: ConfigError: " in told("config", PRESET, override)
    with pytest.raises(ConfigError) as caught:
        read_config(PRESET, [override], RunConfig)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))  # as by --debug


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_cannot_be_is_refused_without_the_password_in_it(tmp_path, text):
    (tmp_path / "run.yaml").write_text(BEGINNING + text)
    assert "rewardtune: ConfigError: " in told("config", str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("what", ["replay", "weights", "reward"])
def test_a_server_refuses_a_url_without_the_password_in_it(what):
    given = ["--redis", "s3cret@h:6379"] if what == "replay" else ["replay.url=s3cret@h:6379"]
    assert "replay.url" in told("serve", what, PRESET, *given)


@pytest.mark.parametrize(
    "given",
    [
        ["user:s3cret@h:6379"],
        ["s3cret@h"],
        ["redis://user:s3cret@h"],
        ["redis://h", "--password-env", "A", "--password-file", "b"],
    ],
)
def test_gc_refuses_a_url_without_the_password_in_it(given):
    assert told("gc", "--url", *given).startswith("rewardtune: ConfigError: gc: ")


def test_numbers_are_shown_as_they_hold_no_password():
    assert "(given: 99)" in told("config", PRESET, "replay.policy_lag=99")


def test_what_is_not_yaml_is_told_by_its_line_and_column(tmp_path):
    (tmp_path / "run.yaml").write_text(BEGINNING + "replay:\n  url: redis://user: s3cret@h\n")
    said = told("config", str(tmp_path / "run.yaml"))
    assert "not valid YAML: mapping values are not allowed here (line 5, column 20)" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{url: a", "expected ',' or '}', but got '<stream end>' (line 1, column 8)"),
        ("%a", "expected '<document start>', but found '<stream end>' (line 1, column 3)"),
        ("\ta", r"found character '\t' that cannot start any token (line 1, column 1)"),
        ("*alias", "found undefined alias ... (line 1, column 1)"),
    ],
)
def test_what_yaml_expected_is_told_and_of_what_was_given_no_more_than_a_character(given, said):
    assert f"not valid YAML: {said}" in told("config", PRESET, f"replay={given}")
