"""A sampler's next policy is there when it is asked for."""

import threading

import numpy as np
import pytest

from deploy import policies
from deploy.looking import look_again_and_again
from deploy.policies import Policies
from learner.packed_weights import VersionNotHeld, pack_weights, unpack_weights
from tests.edges import MemoryWeights
from tests.remote_rewards import WAIT


class Store(MemoryWeights):
    """Says what is loaded, and by whom."""

    def __init__(self):
        super().__init__()
        self.loads, self.held = [], threading.Event()
        self.held.set()

    def put(self, version, value):
        packed = pack_weights(version, {"w": np.full(2, value, np.float32)}, "float32")
        self.publish_packed(*packed, last=False, epoch=None)

    def load(self, version):
        self.held.wait(WAIT)
        self.loads.append((version, threading.current_thread().name))
        return version, unpack_weights(*self.packed(version))


@pytest.fixture
def store(monkeypatch):
    ends = []

    def look(*arguments):
        ends.append(arguments[-1])
        return look_again_and_again(*arguments)

    monkeypatch.setattr(policies, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(policies, "look_again_and_again", look)
    yield Store()
    for end in ends:  # else the threads look a thousand times a second while other tests run
        end.set()


def until(condition):
    give_up = threading.Event()
    for _ in range(int(WAIT * 1000)):
        if condition():
            return
        give_up.wait(0.001)
    raise AssertionError("it did not come to it")


def test_a_version_is_loaded_when_it_is_published_and_the_one_before_stays(store):
    loading = Policies(store, lambda params: params["w"].tolist())
    with pytest.raises(VersionNotHeld):
        loading.load(None)
    for version in range(3):
        store.put(version, version)
        until(lambda version=version: len(store.loads) == version + 1)
        assert loading.load(None) == (version, [version] * 2)
        assert loading.load(max(0, version - 1))[1] == [max(0, version - 1)] * 2
    assert store.loads == [(version, "policies") for version in range(3)]


def test_who_asks_for_a_version_that_is_being_loaded_waits_for_it(store):
    store.put(0, 5)
    store.held.clear()
    loading = Policies(store)
    found = []
    asking = threading.Thread(target=lambda: found.append(loading.load(0)))
    asking.start()
    store.held.set()
    asking.join(WAIT)
    assert found[0][1]["w"].tolist() == [5, 5]
    assert len(store.loads) == 1


def test_a_version_that_was_published_anew_is_loaded_anew(store):
    loading = Policies(store)
    store.put(1, 1)
    assert loading.load(1)[1]["w"].tolist() == [1, 1]
    store.put(1, 2)
    assert loading.load(1)[1]["w"].tolist() == [2, 2]


def test_a_fault_of_the_thread_is_logged_and_it_goes_on(store, caplog):
    store.put(0, 0)
    broken = [MemoryError("no room on the device"), MemoryError("no room on the device")]

    def put(params):
        if broken and threading.current_thread().name == "policies":
            raise broken.pop()
        return params["w"].tolist()

    loading = Policies(store, put)
    until(lambda: not broken)
    assert loading.load(None) == (0, [0, 0])
    store.put(1, 1)
    until(lambda: (1, "policies") in store.loads)
    (record,) = [r for r in caplog.records if "'policies' failed" in r.message]
    assert "MemoryError: no room on the device" in record.exc_text
