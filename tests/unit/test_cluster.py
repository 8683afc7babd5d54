"""What a run looks at in its cluster before it starts anything."""

import contextlib
import signal
import types

import pytest

from deploy import cluster
from deploy.config import ClusterConfig


class Actors:
    """Ray with named actors, which are gone after so many looks."""

    def __init__(self, names, looks):
        self.names, self.looks = names, looks

    def get_actor(self, name):
        self.looks -= 1
        if self.looks < 0 or name not in self.names:
            raise ValueError(f"Failed to look up actor with name {name!r}")
        return types.SimpleNamespace()


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)


def test_a_run_whose_name_another_one_has_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(cluster, "ENDING_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "ray", Actors({"mine/weights"}, looks=1000))
    with pytest.raises(cluster.NameTaken, match=r"mine .* \(it has mine/weights\).*name=NAME"):
        cluster.check_name_is_free("mine", ["mine/queue", "mine/weights"])
    cluster.check_name_is_free("yours", ["yours/queue", "yours/weights"])


def test_a_run_that_is_ending_is_waited_for(monkeypatch):
    monkeypatch.setattr(cluster, "ray", Actors({"mine/queue"}, looks=5))
    cluster.check_name_is_free("mine", ["mine/queue"])


@pytest.mark.parametrize("error", [None, ConnectionError("nobody there")])
def test_rays_handler_of_sigterm_does_not_stay(monkeypatch, error):
    def init(**options):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does
        if error is not None:
            raise error

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    ours = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with contextlib.suppress(cluster.PlacementError):
            cluster.connect(ClusterConfig(address="head:1"), "job")
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
