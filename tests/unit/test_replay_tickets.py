"""Tickets are pure functions of (run seed, ordinal)."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.trajectory import Ticket
from replay.tickets import TicketSource, seed_of

IDS = [f"{i:05d}" for i in range(10)]


@given(st.integers(0, 2**63), st.integers(0, 10**6))
def test_a_ticket_depends_on_seed_and_ordinal_only(seed, ordinal):
    one = TicketSource(seed, IDS, "ordered", 1, 4)
    for other_ordinal in (0, ordinal + 25):
        one.ticket(other_ordinal)  # what was asked before must not matter
    other = TicketSource(seed, IDS, "ordered", 1, 4)
    assert one.ticket(ordinal) == other.ticket(ordinal)


@given(st.integers(0, 100), st.integers(0, 5))
def test_an_epoch_visits_every_example_once(seed, epoch):
    source = TicketSource(seed, IDS, "async", 0, 4)
    ordinals = range(epoch * len(IDS), (epoch + 1) * len(IDS))
    assert sorted(source.ticket(ordinal).example_id for ordinal in ordinals) == IDS


def test_epochs_and_runs_have_orders_of_their_own():
    ids = [str(i) for i in range(100)]

    def order(seed: int, epoch: int) -> tuple[str, ...]:
        source = TicketSource(seed, ids, "async", 0, 4)
        return tuple(source.ticket(epoch * 100 + i).example_id for i in range(100))

    orders = {order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_tickets_stay_the_same_for_ever():
    """A change here breaks the resumption of every run and the reproduction of every report."""
    source = TicketSource(1, IDS, "ordered", 1, 4)
    assert source.ticket(9) == Ticket(
        ordinal=9,
        example_id="00004",
        augmentation_seed=17608624544872592383,
        sampling_seed=10435064076072424843,
        policy_version=1,
    )


def test_seeds_of_neighbours_differ():
    seeds = {
        seed_of(run, name, ordinal)
        for run in range(5)
        for name in ("augmentation", "sampling", "epoch")
        for ordinal in range(200)
    }
    assert len(seeds) == 5 * 3 * 200
    assert max(seeds) > 2**63


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_ordered_tickets_name_the_version_lag_steps_before(lag):
    source = TicketSource(0, IDS, "ordered", lag, 4)
    for ordinal in range(40):
        assert source.ticket(ordinal).policy_version == max(0, ordinal // 4 - lag)


def test_async_tickets_take_the_newest_version():
    source = TicketSource(0, IDS, "async", 2, 4)
    assert {source.ticket(ordinal).policy_version for ordinal in range(40)} == {None}


def test_no_examples_and_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        TicketSource(0, [], "async", 0, 4)
    with pytest.raises(ValueError, match="mode is 'sync'"):
        TicketSource(0, IDS, "sync", 0, 4)


def test_a_source_travels_to_its_actor():
    source = TicketSource(3, IDS, "ordered", 1, 4)
    expected = source.ticket(17)
    assert pickle.loads(pickle.dumps(source)).ticket(17) == expected
