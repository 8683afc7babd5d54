"""The hosts of one learner: processes that train one policy together, each with its own devices.

All of them run the same program. What they do together (`gather`, `whole`, `from_first`, a training
step) every host must do, in the same order: what decides over it must be the same on all of them.
Host 0 alone keeps the run's record and speaks for the learner; see `learner.run_record`.

When a host dies the others cannot go on: what they do together fails as `HostLost`, or JAX ends
their processes when it has missed the dead one's heartbeat. The group then starts again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from learner.mesh import by_row

JOIN_SECONDS = 120
"""The longest that the hosts wait for one another at the start."""
HEARTBEAT_SECONDS = 30
"""A host that is not heard of for so long is lost."""
LEAVE_SECONDS = 10

_SMALLEST_MESSAGE = 1024
# How XLA's errors begin where the fault may be another host's. A host's own faults, such as too
# little memory, have other codes.
_OF_OTHERS = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN")


class HostLost(RuntimeError):
    """Another host of the learner is gone: this one must end, and the group start again."""


class Hosts:
    """This process among the learner's hosts; of one host alone nothing here costs anything."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        """Says which one this is; see `join`."""
        self.index, self.count = index, count

    @property
    def first(self) -> bool:
        """Whether this host keeps the run's record."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """What every host gives, by its index.

        Args:
          value: of JSON.
        """
        if self.count == 1:
            return [value]
        data = json.dumps(value).encode()
        with self.together():
            sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
            message = np.zeros(_padded(int(sizes.max())), np.uint8)
            message[: len(data)] = np.frombuffer(data, np.uint8)
            messages = multihost_utils.process_allgather(message)
        return [
            json.loads(bytes(message[:size]))
            for message, size in zip(messages, sizes.tolist(), strict=True)
        ]

    def from_first(self, tree: Any) -> Any:
        """The arrays of host 0, bit for bit; the others give arrays of the same shapes."""
        if self.count == 1:
            return tree

        def send(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            data = np.zeros(_padded(leaf.nbytes), np.uint8)
            if self.first:
                data[: leaf.nbytes] = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
            sent = np.asarray(multihost_utils.broadcast_one_to_all(data))
            return sent[: leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)

        with self.together():
            return jax.tree.map(send, tree)

    def whole(self, tree: Any) -> Any:
        """The arrays in this host's memory, wherever their parts lie."""

        def fetch(leaf: Any) -> Any:
            if self.has_whole(leaf):
                return jax.device_get(leaf)
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

        with self.together():
            return jax.tree.map(fetch, tree)

    def has_whole(self, tree: Any) -> bool:
        """Whether `whole` asks nothing of the other hosts."""
        return all(
            not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
            for leaf in jax.tree.leaves(tree)
        )

    def rows(self, mesh: Mesh, batch: Any) -> Any:
        """The batch whose rows are those of all hosts, in the order of the hosts."""
        if self.count == 1:
            return batch
        place = by_row(mesh)
        make = jax.make_array_from_process_local_data
        return jax.tree.map(lambda x: make(place, x), batch)  # type: ignore[no-untyped-call]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the hosts do together.

        Raises:
          HostLost: in place of what XLA says when another host is gone.
        """
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            code = str(error).split(":", 1)[0]
            if self.count > 1 and code in _OF_OTHERS:
                raise HostLost(
                    f"host {self.index} of {self.count} cannot go on without the others: {error}"
                ) from error
            raise


def join(index: int, count: int, coordinator: str | None) -> Hosts:
    """Waits for the other hosts. To be called before JAX has computed anything.

    Args:
      index: of this host, from 0.
      count: how many there are.
      coordinator: HOST:PORT at which host 0 can be reached by the others; the port must be free.

    Raises:
      HostLost: they did not all come.
      ValueError: JAX numbers them otherwise; see `check_index`.
    """
    if count == 1:
        return Hosts()
    # It would take SIGTERM for itself, which is a request to stop.
    jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes=count,
            process_id=index,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise HostLost(
            f"host {index} of {count} did not find the others at {coordinator}: {error}"
        ) from error
    check_index(index, jax.process_index())
    return Hosts(index, count)


def check_index(index: int, of_jax: int) -> None:
    """JAX gathers by its own index, and its first process writes the checkpoints.

    Raises:
      ValueError: the two differ.
    """
    if index != of_jax:
        raise ValueError(
            f"the learner's host {index} is JAX's process {of_jax}: a slice of TPUs wants each on "
            "the host of its number (TPU_WORKER_ID); a run in Ray sees to it by the node label "
            "ray.io/tpu-worker-id, `rewardtune learn` by --host"
        )


def leave(hosts: Hosts) -> None:
    """Parts from the others when all are done; what is lost then is lost to nobody."""
    if hosts.count > 1:
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def _padded(size: int) -> int:
    """Few lengths, so that few programs are compiled."""
    return max(_SMALLEST_MESSAGE, 1 << (size - 1).bit_length()) if size else _SMALLEST_MESSAGE
