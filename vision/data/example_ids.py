"""What all data say of an example that they do not have."""

from collections.abc import Sequence


def no_example(example_id: str, known: Sequence[str]) -> str:
    """The message for an id that a split does not have."""
    span = f"{known[0]} .. {known[-1]}" if known else "none"
    return f"no example {example_id!r} in this split; it has {len(known)}: {span}"
