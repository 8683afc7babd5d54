"""One host of a learner, as a process of its own: `python -m tests.learner_host SETTINGS`.

SETTINGS is JSON: the run's config, HOST:PORT of its queue, and which host this is.
"""

import json
import sys
from pathlib import Path

from deploy.config import RunConfig
from deploy.processes import build_learner, load_initial
from learner.hosts import join, leave
from learner.stop import StopRequest
from protos.edge_client import Peer
from replay.remote_queue import RemoteReplayQueue
from vision.tasks.registry import build_task


class Nowhere:
    """A weight store that forgets."""

    def fence(self, epoch):
        pass

    def publish(self, version, params, dtype, last):
        pass


def main(settings):
    config = RunConfig.model_validate(settings["config"])
    hosts = join(settings["index"], config.learner.hosts, settings["coordinator"])
    task = build_task(config.task)
    initial = load_initial(config, config.model.build(task), task)
    queue = RemoteReplayQueue(Peer(settings["queue"]))
    directory = Path(settings["directory"])
    learner = build_learner(config, task, queue, Nowhere(), directory, initial, hosts)
    status = learner.run(StopRequest())
    queue.disconnect()
    leave(hosts)
    print(json.dumps(status))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
