"""The global reservoir: every distinct sample ever offered anywhere is equally likely to be held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import alone_in_its_store
from scipy.stats import chisquare

from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.policies import OPEN, Reservoir
from rehearsal_kit.buffer.row_layout import RowLayout

STEPS = 400
SIZES = [256, 64, 0, 128]  # samples per step of each rank: streams of very different length


def identities(rank, step):
    return torch.arange(SIZES[rank]) + 2**32 * rank + SIZES[rank] * step


def stream(groups, *, local, seed=5):
    """Offer every sample twice, half the stream apart; what this rank holds in the end."""
    exchange = alone_in_its_store(groups) if local else GroupExchange(groups)
    layout = RowLayout.of({"sample_id": torch.zeros(0, dtype=torch.int64)})
    settings = Rehearsal(representatives=0, capacity=1500 * exchange.ranks, policy="reservoir")
    with DistributedBuffer(layout, settings, seed=seed, exchange=exchange) as buffer:
        for step in range(STEPS):
            buffer.advance()
            buffer.offer({"sample_id": identities(groups.rank, step % (STEPS // 2))}, group=0)
        buffer.advance()
        state = buffer.state()
        return layout.unpack(state.contents.rows)["sample_id"].tolist(), state.policy_state["threshold"]


def stream_global(groups):
    return stream(groups, local=False)


def stream_local(groups):
    return stream(groups, local=True)


def cells(results, ranks):
    """How many are held of each rank's stream and tenth of its time, and how many were offered there."""
    held, offered = [], []
    for rank in range(ranks):
        own = np.array(results[rank][0], dtype=np.int64) - 2**32 * rank
        total = SIZES[rank] * STEPS // 2
        if total:
            held.append(np.histogram(own, bins=10, range=(0, total))[0])
            offered.append(np.full(10, total / 10))
    return np.concatenate(held), np.concatenate(offered)


def pvalue(results, ranks):
    held, offered = cells(results, ranks)
    return chisquare(held, offered * held.sum() / offered.sum()).pvalue


@pytest.fixture(scope="module")
def streamed(pool):
    """What every rank holds of the same stream, and its threshold."""
    return pool(stream_global)


def test_it_is_the_same_for_every_rank_and_every_age(pool, streamed):
    assert sum(SIZES[: pool.ranks]) * STEPS >= 100_000
    assert len({threshold for _, threshold in streamed}) == 1
    assert max(len(held) for held, _ in streamed) > 1400
    for held, _ in streamed:
        assert len(set(held)) == len(held) <= 1500
    assert pvalue(streamed, pool.ranks) > 1e-4


def test_the_test_fails_where_every_rank_has_a_threshold_of_its_own(pool):
    results = pool(stream_local)
    if pool.ranks == 1:
        assert pvalue(results, 1) > 1e-4  # alone, local is global
    else:
        assert pvalue(results, pool.ranks) < 1e-10


def test_a_sample_is_held_exactly_if_its_tag_lies_below_the_threshold(streamed):
    for rank, (held, threshold) in enumerate(streamed):
        everything = np.concatenate([identities(rank, step).numpy() for step in range(STEPS // 2)])
        below = everything[Reservoir(5).tags(everything) < threshold]
        assert sorted(held) == sorted(below.tolist())


def test_tags_are_uniform_and_depend_on_the_seed():
    numbers = np.arange(200_000)
    tags = Reservoir(1).tags(numbers)
    assert chisquare(np.histogram(tags, bins=100, range=(0, OPEN))[0]).pvalue > 1e-4
    low_bits = np.bincount(tags % 64, minlength=64)
    assert chisquare(low_bits).pvalue > 1e-4
    assert len(np.unique(tags)) == len(tags)
    other = Reservoir(2).tags(numbers)
    assert abs(np.corrcoef(tags, other)[0, 1]) < 4 / np.sqrt(len(tags))
