"""Tickets: what to sample at an ordinal, a pure function of (run seed, ordinal).

Any worker on any machine can redo any ordinal and get the same. So only streams that are the same
everywhere are used: blake2b, and the raw bits of PCG64, which numpy guarantees (its shuffles it
does not).
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from protos.trajectory import Ticket


def seed_of(run_seed: int, name: str, ordinal: int) -> int:
    """A uint64 that depends on all three and looks independent of every other."""
    text = f"{run_seed}/{name}/{ordinal}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class TicketSource:
    """The tickets of one run. Every epoch goes through all examples, in an order of its own."""

    def __init__(
        self,
        run_seed: int,
        example_ids: Sequence[str],
        mode: Literal["ordered", "async"],
        lag: int,
        groups_per_step: int,
    ) -> None:
        if not example_ids:
            raise ValueError("the training split has no examples: there is nothing to sample")
        if mode not in ("ordered", "async"):
            raise ValueError(f"mode is {mode!r}; it must be 'ordered' or 'async'")
        self.run_seed = run_seed
        self.example_ids = tuple(example_ids)
        self.mode = mode
        self.lag = lag
        self.groups_per_step = groups_per_step
        self._orders: dict[int, np.ndarray] = {}  # of two epochs: a block may straddle them

    def ticket(self, ordinal: int) -> Ticket:
        """The ticket of any ordinal from 0 on."""
        epoch, position = divmod(ordinal, len(self.example_ids))
        return Ticket(
            ordinal=ordinal,
            example_id=self.example_ids[int(self._order(epoch)[position])],
            augmentation_seed=seed_of(self.run_seed, "augmentation", ordinal),
            sampling_seed=seed_of(self.run_seed, "sampling", ordinal),
            policy_version=self.policy_version(ordinal),
        )

    def policy_version(self, ordinal: int) -> int | None:
        """The version that must sample it: step - lag in ordered mode; None: the newest."""
        if self.mode == "async":
            return None
        return max(0, ordinal // self.groups_per_step - self.lag)

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            bits = np.random.PCG64(seed_of(self.run_seed, "epoch", epoch))
            order = np.argsort(bits.random_raw(len(self.example_ids)), kind="stable")
            # Replaced whole, so that other threads may read it at any time.
            neighbours = {e: o for e, o in self._orders.items() if abs(e - epoch) == 1}
            self._orders = {**neighbours, epoch: order}
        return order
