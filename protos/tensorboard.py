"""TensorBoard's event files, written without torch.

tensorboardX imports torch where that is installed, to accept tensors: 2.8 s of CPU at the start of
every learner and every command, for nothing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

__all__ = ["SummaryWriter"]


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Lets a module that is not imported yet seem missing to others that would import it."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = cast(ModuleType, None)
    try:
        yield
    finally:
        del sys.modules[name]


with _without("torch"):
    from tensorboardX import SummaryWriter
