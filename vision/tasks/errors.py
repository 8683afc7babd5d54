"""What users' code raised, as one line that may travel."""

import traceback

# A reason travels with its group and stands in the logs; a whole array's repr should not.
_MAX_REASON = 500


def describe(error: BaseException) -> str:
    """The error's type, message and innermost place, short enough to travel."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({place[0].filename}:{place[0].lineno})" if place else ""
    return shorten(f"{type(error).__name__}: {error}") + where


def shorten(reason: str) -> str:
    """At most 500 characters of it."""
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 1] + "…"
