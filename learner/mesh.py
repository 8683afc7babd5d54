"""The devices of a training, and how its arrays lie on them.

A mesh has two axes. A batch is split over both, row by row; parameters and optimizer state are
split over 'shard' alone (fully sharded data parallelism: XLA gathers a layer's parameters where it
computes with them and scatters their gradients), and replicated over 'data'.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, SHARD = "data", "shard"


def make_mesh(devices: int = 1, shards: int = 1, this_host: bool = False) -> Mesh:
    """A mesh of the first `devices` devices of each host, `shards` of which hold one copy.

    `this_host` leaves out the others'.

    The rows of a batch fall on the hosts by their index: of one host all, else equal parts.

    Raises:
      ValueError: there are not as many, or they do not divide over the shards.
    """
    available = jax.local_devices()
    if devices > len(available):
        raise ValueError(
            f"devices: {devices} asked for, but JAX sees {len(available)} ({available[0].platform})"
        )
    of_host = [
        [device for device in jax.devices() if device.process_index == host][:devices]
        for host in ([jax.process_index()] if this_host else range(jax.process_count()))
    ]
    chosen = [device for some in of_host for device in some]
    if len(chosen) % shards:
        raise ValueError(f"devices {len(chosen)} must be a multiple of shards {shards}")
    return Mesh(np.array(chosen).reshape(len(chosen) // shards, shards), (DATA, SHARD))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of an array."""
    return _sharding(mesh)


def by_row(mesh: Mesh) -> NamedSharding:
    """The rows of a batch are split over all devices."""
    return _sharding(mesh, (DATA, SHARD))


def of_state(mesh: Mesh, tree: Any) -> Any:
    """For each array, or shape, of parameters or optimizer state, where it lies.

    Its longest axis that divides over the shards is split; where none does, it is replicated.
    """

    def place(leaf: Any) -> NamedSharding:
        shards = mesh.shape[SHARD]
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % shards == 0]
        if shards == 1 or not fitting:
            return replicated(mesh)
        longest = max(fitting, key=lambda axis: int(leaf.shape[axis]))
        return _sharding(mesh, *[None] * longest, SHARD)

    return jax.tree.map(place, tree)


def put_state(mesh: Mesh, tree: Any) -> Any:
    """Parameters or optimizer state where `of_state` wants them; no copy of what lies there."""

    def put(leaf: Any, wanted: NamedSharding) -> Any:
        if isinstance(leaf, jax.Array) and leaf.sharding == wanted:
            return leaf
        if wanted.is_fully_addressable:
            return jax.device_put(leaf, wanted)
        # Every host has all of it, and gives its devices their parts.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, wanted, lambda part: whole[part].copy())

    return jax.tree.map(put, tree, of_state(mesh, tree))


def _sharding(mesh: Mesh, *axes: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
