"""All metrics of a run: one description that the code, the dashboards and the reference share.

Labels name what there are a handful of: stages, roles, states. No label names a worker, an example
or an ordinal, so a run of a thousand workers has as many series as one of four.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

PREFIX = "rewardtune_"
# Ray puts this before the name of everything that is exported through it.
RAY_PREFIX = "ray_"

STAGES = ("to_sample", "to_score", "to_train")
ROLES = ("learner", "sampler", "reward", "evaluator")
# As `deploy.run_status` has them.
ENDED = ("finished", "stopped", "failed")
RUN_STATES = (
    "starting",
    "waiting for a learner",
    "waiting",
    "training",
    *ENDED,
)
WORKER_STATES = ("pending", "running", "draining", "outside", "ended")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
      name: without the prefix, as Prometheus has it: a counter ends in `_total`.
      kind: `counter` or `gauge`.
      unit: what a value counts or measures.
      help: one sentence.
      labels: beside `run`, which all have; each with its values. A counter may have others, which
        are exported when they first occur.
      seeded: whether every combination of the values is there, at 0, from the beginning.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeded: bool = True

    @property
    def ray_name(self) -> str:
        """As it is told to Ray, which adds `_total` to counters itself."""
        return PREFIX + self.name.removesuffix("_total" if self.kind == "counter" else "")

    @property
    def exported(self) -> str:
        """As it stands in Prometheus."""
        return RAY_PREFIX + PREFIX + self.name


METRICS: tuple[Metric, ...] = (
    # The run.
    Metric(
        "run_state",
        "gauge",
        "0 or 1",
        "1 for the state that the run is in.",
        {"state": RUN_STATES},
    ),
    Metric(
        "ended_total",
        "counter",
        "runs",
        "1 once the run has ended, by how. It stays while Ray's node does, and gauges do not.",
        {"state": ENDED},
    ),
    Metric(
        "status_timestamp_seconds",
        "gauge",
        "Unix time",
        "When the controller last looked at the run; it does so every second.",
        seeded=False,
    ),
    Metric("step", "gauge", "steps", "Steps that are finished."),
    Metric("step_target", "gauge", "steps", "Steps that the run shall train.", seeded=False),
    Metric(
        "steps_total",
        "counter",
        "steps",
        "Steps trained; those that a restarted learner trains again count again.",
    ),
    # The queue.
    Metric(
        "queue_groups",
        "gauge",
        "groups",
        "Groups in a stage of the queue: ready to be leased, or leased.",
        {"stage": STAGES, "state": ("ready", "leased")},
    ),
    Metric(
        "queue_oldest_wait_seconds",
        "gauge",
        "seconds",
        "How long the group that is ready longest has waited to be leased.",
        {"stage": STAGES},
    ),
    Metric(
        "queue_wait_seconds",
        "gauge",
        "seconds",
        "How long the groups leased last had waited: median and 95th percentile.",
        {"stage": STAGES, "quantile": ("0.5", "0.95")},
    ),
    Metric("queue_out_groups", "gauge", "groups", "Groups out: sampling, scoring, waiting."),
    Metric("queue_window_groups", "gauge", "groups", "The most groups that may be out."),
    Metric(
        "queue_unreachable",
        "gauge",
        "0 or 1",
        "1 while everyone waits for the queue: Redis does not answer, or is full.",
    ),
    Metric(
        "groups_total",
        "counter",
        "groups",
        "What became of groups: trained (rows of steps, masked ones included), dropped as too "
        "stale, quarantined.",
        {"outcome": ("trained", "dropped", "quarantined")},
    ),
    Metric(
        "leases_total",
        "counter",
        "leases",
        "Leases that went wrong: expired (not renewed), or redelivered after a failed delivery.",
        {"event": ("expired", "redelivered")},
    ),
    Metric(
        "bottleneck",
        "gauge",
        "0 or 1",
        "1 for what holds the run up; `rewardtune status` has the sentence.",
        {"role": (*ROLES, "queue")},
    ),
    # Learning.
    Metric("reward_mean", "gauge", "reward", "Mean reward of the last step.", seeded=False),
    Metric(
        "reward_unscored_ratio",
        "gauge",
        "0 to 1",
        "Share of the last step's samples without a reward.",
        seeded=False,
    ),
    Metric(
        "policy_entropy_nats",
        "gauge",
        "nats a token",
        "Entropy of the policy in the last step.",
        seeded=False,
    ),
    Metric(
        "gradient_norm", "gauge", "norm", "Norm of the gradient in the last step.", seeded=False
    ),
    Metric(
        "staleness_versions",
        "gauge",
        "versions",
        "Age of the policies that sampled the last step's groups.",
        {"stat": ("mean", "max")},
    ),
    Metric(
        "staleness_bound_versions",
        "gauge",
        "versions",
        "The age beyond which groups are dropped (async mode), or that all have (ordered).",
    ),
    Metric(
        "sampler_lag_versions",
        "gauge",
        "versions",
        "How far the sampler with the oldest weights is behind the learner's steps.",
    ),
    Metric(
        "reward_hacking",
        "gauge",
        "0 or 1",
        "1 while the training reward rises and the held-out metric falls.",
    ),
    Metric(
        "learner_seconds_total",
        "counter",
        "seconds",
        "Where the learner's time went.",
        {"part": ("waiting", "loading", "training", "mismatch", "publishing")},
    ),
    # Workers.
    Metric(
        "workers",
        "gauge",
        "workers",
        "Workers by role and state.",
        {"role": ROLES, "state": WORKER_STATES},
    ),
    Metric(
        "worker_restarts_total",
        "counter",
        "restarts",
        "Processes that died or were ended, and were started again.",
        {"role": ROLES},
    ),
    Metric(
        "worker_seconds_total",
        "counter",
        "seconds",
        "Time that workers spent working, and waiting for groups.",
        {"role": ("sampler", "reward"), "activity": ("working", "waiting")},
    ),
    Metric(
        "worker_groups_total",
        "counter",
        "groups",
        "Groups that workers finished.",
        {"role": ("sampler", "reward")},
    ),
    Metric("sampler_tokens_total", "counter", "tokens", "Tokens sampled."),
    Metric(
        "sampler_weights_seconds_total",
        "counter",
        "seconds",
        "Time that samplers spent loading weights; a part of their working time.",
    ),
    Metric(
        "reward_seconds_total",
        "counter",
        "seconds",
        "What rewards cost in reward workers; a task may tell further parts apart.",
        {"part": ("loading", "decoding", "scoring")},
    ),
    Metric(
        "reward_failures_total",
        "counter",
        "groups or samples",
        "Whole groups, and single samples, that could not be scored.",
        {"kind": ("group", "sample")},
    ),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}
