"""What workers outside may put into a run's queue: only what the run's next stage can use."""

import numpy as np

from deploy.config import RunConfig
from protos.trajectory import Sampled, Scored, ScoredGroup, WireError
from replay.queue import Stage
from replay.tickets import TicketSource
from vision.tasks.task import Task

_LARGEST = float(np.finfo(np.float32).max)  # the learner trains on rewards in float32


class PayloadCheck:
    """Refuses groups that would break the reward worker or the learner that gets them.

    A ticket is a pure function of its ordinal, so a group that is not of this run is known by it.
    """

    def __init__(self, config: RunConfig, task: Task, tickets: TicketSource) -> None:
        self._task, self._tickets = task, tickets
        self._steps = config.learner.steps
        self._shape = (config.learner.samples_per_group, task.max_length)

    def __call__(self, ordinal: int | None, stage: Stage | None, payload: bytes) -> None:
        """Checks a completed group.

        Args:
          ordinal: of its lease; None: not known here.
          stage: of its lease, which says what it must be; None: not known here, then it may be
            what either stage makes.
          payload: its bytes.

        Raises:
          WireError: as it says.
        """
        scored = _scored(stage, payload)
        sampled = Sampled.from_bytes(payload) if scored is None else scored.sampled
        ticket = sampled.ticket
        if ordinal is not None and ticket.ordinal != ordinal:
            raise WireError(f"the lease is of ordinal {ordinal}, the group of {ticket.ordinal}")
        if ticket != self._tickets.ticket(ticket.ordinal):
            raise WireError(f"ordinal {ticket.ordinal}: the ticket is not of this run")
        if ticket.policy_version not in (None, sampled.policy_version):
            raise WireError(
                f"ordinal {ticket.ordinal}: sampled with policy {sampled.policy_version}, its "
                f"ticket says {ticket.policy_version}"
            )
        if not 0 <= sampled.policy_version <= self._steps:
            raise WireError(
                f"ordinal {ticket.ordinal}: sampled with policy {sampled.policy_version}; this "
                f"run's are 0 .. {self._steps} (learner.steps)"
            )
        self._check_arrays(sampled)
        if scored is not None:
            self._check_outcomes(scored)

    def _check_arrays(self, sampled: Sampled) -> None:
        where, tokens = f"ordinal {sampled.ticket.ordinal}", sampled.tokens
        if tokens.shape != self._shape:
            raise WireError(
                f"{where}: tokens are {list(tokens.shape)}; this run's are {list(self._shape)}"
            )
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= self._task.vocabulary_size:
            raise WireError(
                f"{where}: tokens are in {least} .. {most}; this task's vocabulary has "
                f"{self._task.vocabulary_size}"
            )
        masses = [] if sampled.kept_mass is None else [("kept_mass", sampled.kept_mass)]
        for name, values in [("logprobs", sampled.logprobs), *masses]:
            if not np.isfinite(values).all():
                raise WireError(f"{where}: {name} are not all finite")

    def _check_outcomes(self, group: ScoredGroup) -> None:
        for k, outcome in enumerate(group.outcomes):
            if not isinstance(outcome, Scored):
                continue
            where = f"ordinal {group.sampled.ticket.ordinal}, sample {k}"
            if abs(outcome.reward) > _LARGEST:
                raise WireError(f"{where}: reward {outcome.reward} is not finite in float32")
            for name, values in outcome.auxiliary.items():
                expected = self._task.auxiliary_arrays.get(name)
                if expected is None:
                    continue
                if values.shape != tuple(expected):
                    raise WireError(
                        f"{where}: {name} is {list(values.shape)}, the task's auxiliary loss "
                        f"takes {list(expected)}"
                    )
                if not np.isfinite(values).all():
                    raise WireError(f"{where}: {name} is not all finite")


def _scored(stage: Stage | None, payload: bytes) -> ScoredGroup | None:
    """The scored group; None: it is to be a sampled one, or may be.

    Bytes of one message are not valid ones of the other.

    Raises:
      WireError: a reward worker's lease was completed with something else.
    """
    if stage is Stage.TO_SAMPLE:
        return None
    try:
        return ScoredGroup.from_bytes(payload)
    except WireError:
        if stage is Stage.TO_SCORE:
            raise
        return None
