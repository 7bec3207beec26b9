"""The plan of a draw is the same everywhere, without repeats, and uniform over what is stored anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rehearsal_kit.draw import plan_draw


@given(
    stored=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    count=st.integers(0, 30),
    step=st.integers(0, 10**6),
)
def test_every_destination_draws_distinct_samples_that_exist(stored, count, step):
    plan = plan_draw(stored, count, seed=5, step=step)
    assert plan.owners.shape == (len(stored), min(count, sum(stored)))
    for owners, rows in zip(plan.owners, plan.rows, strict=True):
        assert len(set(zip(owners.tolist(), rows.tolist(), strict=True))) == len(owners)
        assert all(0 <= row < stored[owner] for owner, row in zip(owners, rows, strict=True))
        assert (np.diff(owners) >= 0).all()


@given(stored=st.lists(st.integers(0, 40), min_size=1, max_size=5), count=st.integers(0, 30))
def test_what_owners_send_is_what_destinations_receive(stored, count):
    plan = plan_draw(stored, count, seed=5, step=1)
    ranks = len(stored)
    sends = np.array([plan.sent_by(owner)[1] for owner in range(ranks)])
    receives = np.array([plan.received_by(destination) for destination in range(ranks)])
    assert (sends == receives.T).all()
    assert [len(plan.sent_by(owner)[0]) for owner in range(ranks)] == sends.sum(axis=1).tolist()


def _counts(stored, draws, choose):
    counts = [np.zeros(n) for n in stored]
    for step in range(draws):
        owners, rows = choose(stored, step)
        for owner, row in zip(owners, rows, strict=True):
            counts[owner][row] += 1
    return np.concatenate(counts)


def _global(stored, step):
    plan = plan_draw(stored, 5, seed=11, step=step)
    return plan.owners[0], plan.rows[0]


def _local(stored, step):
    """What a biased draw looks like: an owner first, then one of its rows."""
    random = np.random.default_rng(step)
    owners = random.choice([rank for rank, n in enumerate(stored) if n], 5)
    return owners, [int(random.integers(stored[owner])) for owner in owners]


@pytest.mark.parametrize("stored", [(30, 10, 0, 3), (7, 7), (1, 0, 25)])
def test_every_stored_sample_is_drawn_equally_often_with_unequal_and_empty_ranks(stored):
    assert chisquare(_counts(stored, 20_000, _global)).pvalue > 1e-4


def test_the_test_of_uniformity_can_fail():
    assert chisquare(_counts((30, 10, 0, 3), 2_000, _local)).pvalue < 1e-10


def test_a_draw_depends_on_seed_and_step_and_on_nothing_else():
    same = [plan_draw((9, 4), 3, seed=1, step=2).rows.tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert (
        plan_draw((90, 40), 30, seed=1, step=3).rows.tolist()
        != plan_draw((90, 40), 30, seed=1, step=2).rows.tolist()
    )
    assert (
        plan_draw((90, 40), 30, seed=2, step=2).rows.tolist()
        != plan_draw((90, 40), 30, seed=1, step=2).rows.tolist()
    )
