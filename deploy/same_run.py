"""Whether two configs are of the same run: those who join one must mean what it means."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.config import RunConfig
from deploy.config_file import ConfigError

OTHER_HARDWARE = (
    "actors.computes_on",
    "learner.computes_on",
    "learner.devices",
    "learner.hosts",
    "learner.microbatches",
    "learner.shards",
)
"""What may differ where a role runs on other hardware than the run's: it changes the last bits."""


def check_same_run(
    ours: RunConfig, theirs: RunConfig, who: str, may_differ: Collection[str] = ()
) -> None:
    """Compares all that the numbers of a run depend on.

    Paths are not compared: they may differ by machine.

    Args:
      ours: the config that was given.
      theirs: the run's.
      who: tells of the run, for the message.
      may_differ: dotted names.

    Raises:
      ConfigError: naming each setting that differs, with both values.
    """
    here, there = dict(_flat(ours.identity())), dict(_flat(theirs.identity()))
    paths = {
        name
        for config in (ours, theirs)
        for name, value in _flat(config.model_dump())
        if isinstance(value, Path)
    }
    odd = [
        f"{name} is {here.get(name)!r}, in the run {there.get(name)!r}"
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name) and name not in paths and name not in may_differ
    ]
    if odd:
        raise ConfigError(f"this config is not that of {who}: {'; '.join(odd)}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
