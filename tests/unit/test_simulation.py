"""Whole runs in virtual time: what holds for the queue's rules, and that broken rules are found."""

import heapq
import os
import subprocess
import sys
from collections import Counter

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.simulation.learner import Learners
from deploy.simulation.replay_server import SimulatedQueue
from deploy.simulation.roles import Work
from deploy.simulation.run import Simulation, SimulationFailed, simulate
from deploy.simulation.world import Call, Network
from protos.trajectory import FailureKind
from replay.queue import Completion, Frontier, Stage
from replay.state import QueueState

SEEDS = range(100, 108)
MODES = [("ordered", 0), ("ordered", 1), ("ordered", 4), ("async", 1), ("async", 4)]


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize(("mode", "lag"), MODES)
def test_every_ordinal_is_trained_once_or_quarantined_whatever_happens(mode, lag, connected):
    happened = Counter()
    for seed in SEEDS:
        hosts = 1 + seed % 2
        figures = simulate(
            Simulation(seed, mode, lag, learner_hosts=hosts, learner_connected=connected)
        )
        assert figures["trained"] + figures["quarantined"] == 20 * 16
        happened.update(figures["counts"])
    faults = {name for name in happened if name.startswith("fault: ")}
    assert len(faults) >= 10, "nearly every kind of fault happened"
    for name in ("messages lost", "messages doubled", "messages slow", "messages at a cut"):
        assert happened[name], name


def test_without_faults_nothing_is_quarantined_or_dropped():
    figures = simulate(
        Simulation(
            worker_mtbf=0,
            service_mtbf=0,
            network=Network(slow=0, lost=0, doubled=0),
            work=Work(cursed=0, broken_examples=0, flaky=0, late=0),
        )
    )
    assert (figures["trained"], figures["quarantined"], figures["dropped"]) == (320, 0, 0)
    assert figures["leases"] == 3 * 320
    assert figures["counts"] == {"outcomes too late": 0}


def test_one_seed_gives_one_trace_in_every_process():
    program = (
        "from deploy.simulation.run import Simulation, simulate;"
        "print(simulate(Simulation(7, 'async', 2))['trace'])"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert traces == {simulate(Simulation(7, "async", 2))["trace"]}
    assert traces != {simulate(Simulation(8, "async", 2))["trace"]}


def test_the_command_of_a_simulation_simulates_it_again():
    simulation = Simulation(
        3, "async", 2, steps=4, learner_connected=False, service_mtbf=1e6, message_faults=0.5
    )
    arguments = simulation.command.split()[1:]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert simulate(simulation)["trace"] in result.output


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--groups-per-step=10", "--block=4"], "block is 4 and groups_per_step 10"),
        (["--groups-per-step=70000", "--block=1"], "groups_per_step: Input should be less"),
        (["--learner-hosts=3"], "learner_hosts is 3 and groups_per_step 16: the hosts must divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_simulated(options, fault):
    result = CliRunner().invoke(app, ["simulate", *options])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "rewardtune: ConfigError: " in result.stderr
    assert fault in result.stderr


def test_an_unknown_mode_is_refused():
    result = CliRunner().invoke(app, ["simulate", "--mode=sorted"])
    assert result.exit_code == 1
    assert "'sorted'" in result.stderr


# -- broken rules -------------------------------------------------------------------------------


class AcceptsLateOutcomes(QueueState):
    """An outcome counts although its lease has expired, where nobody holds the group now."""

    def __init__(self, *arguments):
        self.given = {}
        super().__init__(*arguments)

    def _hold(self, *arguments):
        lease = super()._hold(*arguments)
        self.given[lease.id] = lease
        return lease

    def complete(self, lease_id, payload, now):
        lease = self.given.get(lease_id)
        item = self._items.get(lease.ordinal) if lease else None
        if item and item.lease_id is None and item.stage is lease.stage:
            again = self._hold(lease.ordinal, None, 1.0, lease.worker, now)
            self._leases.hand_out(lease.worker, [again])
            return super().complete(again.id, payload, now)
        return super().complete(lease_id, payload, now)


class ForgetsExpired(QueueState):
    """A group whose lease expired is never handed out again."""

    def _fail(self, lease, reason, kind, now):
        super()._fail(lease, reason, kind, now)
        if reason.startswith("lease of"):
            del self._ready[self._items[lease.ordinal].stage].since[lease.ordinal]


class Overfills(QueueState):
    """One step more than the window is out."""

    def __init__(self, config, *arguments):
        super().__init__(config.model_copy(update={"lag": config.lag + 1}), *arguments)


class HandsOutTwice(QueueState):
    """Some groups stay ready while they are leased."""

    def lease(self, stage, n, ttl, worker, now, first=None):
        leases = super().lease(stage, n, ttl, worker, now, first)
        for lease in leases:
            if lease.ordinal % 50 == 0:
                self._ready[stage].add(lease.ordinal, now)
        return leases


class ForgetsLastAck(QueueState):
    """The frontier that is kept is one ordinal behind."""

    def frontier(self):
        frontier = super().frontier()
        return Frontier(max(0, frontier.next_unacked - 1), (), frontier.dropped)


class TrainsWhatIsReady(QueueState):
    """In ordered mode too."""

    def _share(self, first, n, worker, now):
        ready = heapq.nsmallest(n, self._ready[Stage.TO_TRAIN].since)
        return ready if len(ready) == n else []


class RenewsNothing(QueueState):
    """It says that leases are renewed, and lets them expire all the same."""

    def renew(self, lease_ids, now):
        self.expire(now)
        return [lease_id for lease_id in lease_ids if self._leases.get(lease_id)]


class DropsQuarantined(QueueState):
    """What is given up is forgotten instead of told to the learner."""

    def _fail(self, lease, reason, kind, now):
        super()._fail(lease, reason, kind, now)
        if self._items[lease.ordinal].tombstone:
            del self._items[lease.ordinal]
            del self._ready[Stage.TO_TRAIN].since[lease.ordinal]


class CountsReleases(QueueState):
    """A group that was given back untried counts as a failed delivery."""

    def release(self, lease_ids, now):
        held = [lease.ordinal for each in lease_ids if (lease := self._leases.get(each))]
        super().release(lease_ids, now)
        for ordinal in held:
            if ordinal in self._items:
                self._items[ordinal].failed += 1


class CountsAllOfAWorker(QueueState):
    """What a silent worker held from earlier calls counts as failed deliveries too."""

    def _take_back(self, lease, reason, now):
        self._fail(lease, reason, FailureKind.INFRASTRUCTURE, now)


class RefusesInTime(QueueState):
    """An outcome in the last fifth of its lease is refused."""

    def complete(self, lease_id, payload, now):
        lease = self._leases.get(lease_id)
        if lease and now > self._leases.deadline(lease) - lease.ttl / 5:
            return Completion.TOO_LATE
        return super().complete(lease_id, payload, now)


class AnswersAcksTooEarly(QueueState):
    """Half of an ack is forgotten."""

    def ack(self, ordinals, now, dropped=False):
        super().ack(ordinals[: len(ordinals) // 2], now, dropped)


@pytest.mark.parametrize(
    "rules",
    [
        AcceptsLateOutcomes,
        ForgetsExpired,
        Overfills,
        HandsOutTwice,
        ForgetsLastAck,
        TrainsWhatIsReady,
        RenewsNothing,
        DropsQuarantined,
        CountsReleases,
        CountsAllOfAWorker,
        RefusesInTime,
        AnswersAcksTooEarly,
    ],
)
def test_a_broken_queue_is_found(rules):
    for seed in range(100):
        simulation = Simulation(seed, work=Work(scoring=0.5, late=0.02))
        try:
            simulate(simulation, rules)
        except SimulationFailed as error:
            message = str(error)
            assert "Violation" in message, message
            assert f"again: rewardtune simulate --seed={seed}" in message
            assert "'lease'" in message, "it shows what happened before"
            with pytest.raises(SimulationFailed) as again:
                simulate(simulation, rules)
            assert str(again.value) == message
            return
    pytest.fail(f"{rules.__doc__} 100 seeds have not shown it")


# -- a broken fence, clock, edge or learner -------------------------------------------------------


class IgnoresEpochs(SimulatedQueue):
    """A learner whose place was taken is answered as if it were the run's."""

    def check_epoch(self, epoch):
        pass


class FencesLeasesOnly(SimulatedQueue):
    """What an earlier learner has trained is acked."""

    def ack(self, ordinals, dropped, epoch):
        self.check_epoch, kept = lambda _: None, self.check_epoch
        try:
            super().ack(ordinals, dropped, epoch)
        finally:
            self.check_epoch = kept


class KeepsEpochs(SimulatedQueue):
    """A queue that was made anew lets the learners of the one before in."""

    def begin(self, frontier):
        fence = getattr(self, "_fence", None)
        super().begin(frontier)
        self._fence = fence or self._fence


class TrustsWorkersClocks(SimulatedQueue):
    """Leases end by the clock of whoever asks."""

    def clock(self):
        return self.asked_at


class IgnoresItsClocksSteps(SimulatedQueue):
    """Leases that were given before its clock was set end by the clock as it was then."""

    def clock(self):
        return self.world.now


class ForgetsCallNumbers(SimulatedQueue):
    """A call that is repeated has its effect again, as with a server that was started anew."""

    def _answer_once(self, request, caller, number, reply, answers):
        self.answer(request, reply)


class RestartsAgain(ForgetsCallNumbers):
    """As our queue did until the edges were doubled: a late repetition takes steps back."""

    def restart(self, frontier, epoch):
        self._fence._begun = ""
        super().restart(frontier, epoch)


class AsksTheQueueForItsFrontier(Learners):
    """As our learner did until the simulation found it: the queue may be another one's by then."""

    def _frontier(self, history):
        return (yield Call(self._queue, "frontier", ()))


@pytest.mark.parametrize(
    ("broken", "settings"),
    [
        (IgnoresEpochs, {}),
        (FencesLeasesOnly, {}),
        (KeepsEpochs, {}),
        (TrustsWorkersClocks, {}),
        (IgnoresItsClocksSteps, {"service_mtbf": 60}),
        (RestartsAgain, {"network": Network(slow=0.1), "learner_connected": False}),
        (AsksTheQueueForItsFrontier, {"network": Network(latency=0.3)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_fence_clock_edge_or_learner_is_found(broken, settings):
    part = "server" if issubclass(broken, SimulatedQueue) else "learners"
    for seed in range(200):
        mode, connected = ("ordered", "async")[seed % 2], seed % 4 < 2
        values = {"checkpoint_every": 1, "service_mtbf": 20, "learner_connected": connected}
        simulation = Simulation(seed, mode, **values | settings)
        try:
            simulate(simulation, **{part: broken})
        except SimulationFailed:
            simulate(simulation)  # which the right one passes
            return
    pytest.fail("200 seeds have not shown it")


@pytest.mark.parametrize("mode", ["ordered", "async"])
def test_a_server_that_forgets_call_numbers_costs_no_group(mode):
    outside = {"learner_connected": False, "outside_workers": 1.0, "learner_hosts": 2}
    for seed in SEEDS:
        simulation = Simulation(seed, mode, network=Network(slow=0.03), **outside)
        assert simulate(simulation, server=ForgetsCallNumbers)["steps"] == 20
