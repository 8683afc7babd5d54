"""What workers outside may put into a run's queue: only what the run's next stage can use."""

from collections.abc import Callable

import numpy as np

from deploy.config import RunConfig
from protos.trajectory import Sampled, Scored, ScoredGroup, WireError
from replay.queue import Stage
from replay.tickets import TicketSource
from rewards.judge import LARGEST
from vision.tasks.task import Task

# A log-softmax in float32 may come out a little above 0. What an engine draws lies at most 20
# temperatures, of at most 10, below the likeliest token: no sample's logprob comes near the lowest.
LOGPROBS = (-1e4, 1e-3)


class PayloadCheck:
    """Refuses groups that would break the reward worker or the learner that gets them.

    A ticket is a pure function of its ordinal, so a group that is not of this run is known by it.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        tickets: TicketSource,
        trained: Callable[[], int],
    ) -> None:
        """Prepares to check.

        Args:
          config: of the run.
          task: of the run.
          tickets: of the run.
          trained: asks how many groups have been, which tells the newest policy. It is asked when
            a group claims a newer one than was known before.
        """
        self._task, self._tickets, self._trained = task, tickets, trained
        self._newest = 0
        self._groups_per_step, self._steps = config.learner.groups_per_step, config.learner.steps
        self._shape = (config.learner.samples_per_group, task.max_length)

    def __call__(self, ordinal: int, stage: Stage, payload: bytes) -> None:
        """Checks a completed group.

        Args:
          ordinal: of its lease.
          stage: of its lease, which says what it must be.
          payload: its bytes.

        Raises:
          WireError: as it says.
        """
        scored = ScoredGroup.from_bytes(payload) if stage is Stage.TO_SCORE else None
        sampled = Sampled.from_bytes(payload) if scored is None else scored.sampled
        ticket = sampled.ticket
        if ticket.ordinal != ordinal:
            raise WireError(f"the lease is of ordinal {ordinal}, the group of {ticket.ordinal}")
        if ticket != self._tickets.ticket(ticket.ordinal):
            raise WireError(f"ordinal {ticket.ordinal}: the ticket is not of this run")
        if ticket.policy_version not in (None, sampled.policy_version):
            raise WireError(
                f"ordinal {ticket.ordinal}: sampled with policy {sampled.policy_version}, its "
                f"ticket says {ticket.policy_version}"
            )
        self._check_published(sampled)
        self._check_arrays(sampled)
        if scored is not None:
            self._check_outcomes(scored)

    def _check_published(self, sampled: Sampled) -> None:
        version = sampled.policy_version
        if version > self._newest:
            # A policy is published before the groups that it was trained on are acknowledged.
            newest = self._trained() // self._groups_per_step + 1
            self._newest = min(newest, self._steps)
        if not 0 <= version <= self._newest:
            raise WireError(
                f"ordinal {sampled.ticket.ordinal}: sampled with policy {version}; this run's "
                f"are 0 .. {self._newest} by now"
            )

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
        lowest, highest = LOGPROBS
        if not ((lowest <= sampled.logprobs) & (sampled.logprobs <= highest)).all():
            raise WireError(
                f"{where}: logprobs hold NaN, more than 0, which is no probability's, or less than "
                f"{lowest:g}, which is no sample's"
            )
        if sampled.kept_mass is not None and not np.isfinite(sampled.kept_mass).all():
            raise WireError(f"{where}: kept_mass are not all finite")

    def _check_outcomes(self, group: ScoredGroup) -> None:
        for k, outcome in enumerate(group.outcomes):
            if not isinstance(outcome, Scored):
                continue
            where = f"ordinal {group.sampled.ticket.ordinal}, sample {k}"
            if abs(outcome.reward) > LARGEST:
                raise WireError(
                    f"{where}: reward {outcome.reward} is beyond {LARGEST:,.0f} in size"
                )
            for name, values in outcome.auxiliary.items():
                expected = self._task.auxiliary_arrays.get(name)
                if expected is None:
                    continue
                if values.shape != tuple(expected):
                    raise WireError(
                        f"{where}: {name} is {list(values.shape)}, the task's auxiliary loss "
                        f"takes {list(expected)}"
                    )
                if not (np.abs(values.astype(np.float64)) <= LARGEST).all():
                    raise WireError(
                        f"{where}: {name} is not all finite and at most {LARGEST:,.0f} in size"
                    )
