"""All figures of a report; the page shows nothing else, and report.json holds them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from deploy.report.agreement import Agreement
from deploy.report.distribution import RewardDistribution
from deploy.report.timings import ProcessTime
from deploy.reward_hacking import RewardHacking


@dataclass(frozen=True)
class PolicyFigures:
    """One policy on the split.

    Attributes:
      metrics: of `Task.evaluate`, greedy decoding.
      reward: mean reward of greedy decoding on the split; None: no reward, or nothing was scored.
      unscored: greedy predictions that the reward failed on or abstained from.
      distribution: of sampled rewards; None: not sampled.
    """

    key: str
    label: str
    origin: str
    step: int | None
    metrics: Mapping[str, float]
    reward: float | None = None
    unscored: int = 0
    distribution: RewardDistribution | None = None


@dataclass(frozen=True)
class Curve:
    """A figure over steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]

    @property
    def varies(self) -> bool:
        """Whether there is something to plot."""
        return len(self.values) > 1 and min(self.values) != max(self.values)


@dataclass(frozen=True)
class Picture:
    """One drawn image, ready for an `img` element.

    Attributes:
      caption: what it shows.
      data: a data URI.
    """

    caption: str
    data: str


@dataclass(frozen=True)
class PictureRow:
    """One example: the ground truth, then each policy."""

    example_id: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Report:
    """A measured run.

    Attributes:
      headline: the metric that decides.
      split, examples, of_examples: what the policies were judged on: the first `examples` of the
        `of_examples` of a split.
      policies: `before` first.
      curves: training curves by metric name.
      held_out: evaluations during the run: split, and a curve for each metric.
      agreement: training reward against the headline on held-out examples; None: not both.
      reward_hacking: found when the reward rose and the held-out headline fell.
      missing: sentences on what the run has not left.
      made: how the report was made: command, versions, machine.
      settings: the resolved config, YAML.
      pictures: rows of drawn examples; not part of report.json, whose `pictured` names them.
    """

    run: str
    task: str
    headline: str
    split: str
    examples: int
    of_examples: int
    policies: Sequence[PolicyFigures]
    curves: Sequence[Curve] = ()
    held_out_split: str = ""
    held_out: Sequence[Curve] = ()
    timings: Sequence[ProcessTime] = ()
    agreement: Agreement | None = None
    reward_hacking: RewardHacking | None = None
    missing: Sequence[str] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    pictures: Sequence[PictureRow] = ()

    def policy(self, key: str) -> PolicyFigures | None:
        """The policy of a key, if it was judged."""
        return next((policy for policy in self.policies if policy.key == key), None)

    def curve(self, name: str) -> Curve | None:
        """The training curve of a metric."""
        return next((curve for curve in self.curves if curve.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values; what is not finite is null."""
        values = {name: value for name, value in asdict(self).items() if name != "pictures"}
        values["pictured"] = [row.example_id for row in self.pictures]
        plain: dict[str, Any] = plain_values(values)
        return plain


def plain_values(value: Any) -> Any:
    """What JSON can hold; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


SampledPolicy = tuple[PolicyFigures, RewardDistribution]


def sampled_policies(policies: Sequence[PolicyFigures]) -> list[SampledPolicy]:
    """The policies whose rewards were sampled, with them."""
    return [(p, p.distribution) for p in policies if p.distribution is not None]


def fractions(policies: Sequence[PolicyFigures]) -> set[str]:
    """The metrics that are shown in per cent: within [0, 1] for every policy, and not a count.

    Counts are told by their names, such as `boxes_per_image`.
    """
    names = {name for policy in policies for name in policy.metrics}
    return {
        name
        for name in names
        if "_per_" not in name
        and all(0 <= policy.metrics.get(name, 0.0) <= 1 for policy in policies)
    }
