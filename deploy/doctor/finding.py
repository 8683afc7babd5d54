"""What a check finds."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "info", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      check: what was looked at, in a word or two.
      level: `fail`: a run would not start, or lose something; `warn`: it may; `info`: no run
        depends on it.
      message: what was found.
      fix: what to do; empty where all is well.
    """

    check: str
    level: Level
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", message)


def info(check: str, message: str, fix: str) -> Finding:
    """No run depends on it."""
    return Finding(check, "info", message, fix)


def warn(check: str, message: str, fix: str) -> Finding:
    """It may go wrong."""
    return Finding(check, "warn", message, fix)


def fail(check: str, message: str, fix: str) -> Finding:
    """It will go wrong."""
    return Finding(check, "fail", message, fix)


def failed(findings: list[Finding]) -> bool:
    """Whether any would stop a run."""
    return any(finding.level == "fail" for finding in findings)
