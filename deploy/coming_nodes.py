"""What Ray's autoscaler (v2) is asked for before actors are, and what it is bringing.

Only pending work makes it bring nodes. `ray.autoscaler.sdk.request_resources` would too, but one
request holds for the whole cluster and replaces everybody else's; a pending placement group is
the run's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util import placement_group, remove_placement_group

# A bundle must ask for something; a process may need a label only.
NEXT_TO_NOTHING = {"CPU": 0.001}


@contextmanager
def demanded(
    amounts: Sequence[Mapping[str, float]], labels: Sequence[Mapping[str, str]]
) -> Iterator[None]:
    """Has the autoscaler make room for these processes at the same time, while the block runs."""
    group = placement_group(
        [dict(amount) or NEXT_TO_NOTHING for amount in amounts],
        bundle_label_selector=[dict(label) for label in labels],
    )
    try:
        yield
    finally:
        remove_placement_group(group)


def nodes_coming() -> int:
    """Nodes that the autoscaler is launching, or waits for; 0 where there is none."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    launching = sum(launch.count for launch in status.pending_launches)
    return launching + len(status.pending_nodes)
