"""What goes wrong from outside: which process, when and how, by the run's seed.

Kinds of faults are drawn as cards from a deck that is shuffled when it is empty: so a run that is
long enough sees all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.simulation.replay_server import SimulatedQueue
from deploy.simulation.servers import Server, SimulatedWeights
from deploy.simulation.world import Process, World

Fault = Callable[[float], object]

MEAN_SECONDS = 10.0
LARGEST_CLOCK_STEP = 40.0


class Faults:
    """Draws faults, and does them. The seconds of a fault are about `MEAN_SECONDS`."""

    def __init__(
        self,
        world: World,
        queue: SimulatedQueue,
        weights: SimulatedWeights,
        workers: Sequence[Process],
        learner: Callable[[], Process],
        kill_run: Fault,
        replace_learner: Callable[[], object],
        controller: Process,
    ):
        """Prepares; `learner` gives the present one, `replace_learner` starts another beside it."""
        self._world, self._queue, self._weights = world, queue, weights
        self._workers = workers
        self._decks: dict[bool, list[str]] = {True: [], False: []}
        # Each with how often it is in its deck.
        self._of_workers: dict[str, tuple[int, Callable[[Process, float], object]]] = {
            "worker killed": (5, lambda worker, _: worker.kill("SIGKILL")),
            "worker stopped": (5, lambda worker, seconds: worker.stop(1.5 * seconds)),
            "worker cut off": (3, lambda worker, seconds: worker.cut_off(1.5 * seconds)),
            "worker's clock set": (2, self._set_clock),
        }
        self._of_services: dict[str, tuple[int, Fault]] = {
            "learner killed": (3, lambda _: learner().kill("SIGKILL")),
            "learner stopped": (3, lambda seconds: learner().stop(3 * seconds)),
            "learner cut off": (3, lambda seconds: learner().cut_off(3 * seconds)),
            "learner replaced": (2, lambda _: replace_learner()),
            "controller killed": (1, lambda _: controller.kill("SIGKILL")),
            "queue stopped": (2, lambda seconds: _stop(queue, seconds)),
            "weights stopped": (2, lambda seconds: _stop(weights, seconds)),
            "queue killed": (1, queue.come_back),
            "queue's clock set": (2, self._step_queue_clock),
            "edges killed": (1, lambda _: self._edges(Server.lose_connections)),
            "edges doubled": (1, lambda _: self._edges(Server.add_edge)),
            "storm": (3, self._storm),
            "run killed": (1, kill_run),
        }

    def schedule(self, worker_mtbf: float, service_mtbf: float) -> None:
        """From now on: mean seconds between faults of one worker, and of all services; 0: none."""
        if worker_mtbf:
            self._plan(worker_mtbf / len(self._workers), self._worker_fault)
        if service_mtbf:
            self._plan(service_mtbf, self._service_fault)

    def _plan(self, every: float, fault: Callable[[], None]) -> None:
        self._world.after(self._world.random.expovariate(1.0 / every), self._happen, every, fault)

    def _happen(self, every: float, fault: Callable[[], None]) -> None:
        fault()
        self._plan(every, fault)

    def _worker_fault(self) -> None:
        worker = self._world.random.choice(self._workers)
        faults = self._of_workers
        name = self._draw(faults)
        seconds = self._seconds(name, worker.name)
        faults[name][1](worker, seconds)

    def _service_fault(self) -> None:
        faults = self._of_services
        name = self._draw(faults)
        faults[name][1](self._seconds(name))

    def _draw(self, faults: Mapping[str, tuple[int, Any]]) -> str:
        deck = self._decks[faults is self._of_services]
        if not deck:
            deck += [name for name, (times, _) in faults.items() for _ in range(times)]
            self._world.random.shuffle(deck)
        return deck.pop()

    def _seconds(self, name: str, *what: str) -> float:
        seconds = self._world.random.expovariate(1 / MEAN_SECONDS)
        self._world.counts[f"fault: {name}"] += 1
        self._world.trace("fault", name, *what, seconds)
        return seconds

    def _set_clock(self, worker: Process, seconds: float) -> None:
        """It is stepped either way, and drifts by another rate from now on."""
        random = self._world.random
        worker.set_clock(random.uniform(0.7, 1.5), random.choice([-1, 1]) * seconds)

    def _step_queue_clock(self, seconds: float) -> None:
        step = self._world.random.choice([-1, 1]) * min(seconds, LARGEST_CLOCK_STEP)
        self._queue.step_clock(step)

    def _storm(self, seconds: float) -> None:
        """Messages are slow, lost and doubled 20 times as often."""
        self._world.storm_until = self._world.now + 3 * seconds

    def _edges(self, change: Callable[[Server], None]) -> None:
        change(self._queue)
        change(self._weights)


def _stop(server: Server, seconds: float) -> None:
    server.resumes_at = server.world.now + seconds
