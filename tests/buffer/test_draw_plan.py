"""The plan of a draw is the same everywhere, without repeats, and uniform over what is stored anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, multivariate_hypergeom

from rehearsal_kit.base.randomness import Rekeyed, generator
from rehearsal_kit.buffer.draw_plan import plan_draw, plan_earlier_draw, plan_group_draw, plan_lines
from rehearsal_kit.buffer.plans_ahead import STEPS, PlansAhead

STORED = st.lists(st.integers(0, 60), min_size=1, max_size=5)
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=2)
SIZES = st.lists(st.dictionaries(st.integers(0, 6), st.integers(1, 20), max_size=5), min_size=1, max_size=4)


def rng(*numbers):
    return generator(5, "test", *numbers)


FEWER = st.tuples(st.integers(0, 4), st.integers(0, 4))


def fewer_of(fewer, *, ranks, counts):
    """How many of the last ranks may draw one less."""
    return [min(few, ranks - 1) * (count > 0) for few, count in zip(fewer, counts, strict=False)]


def check(plan, stored, counts, fewer=(0, 0)):
    """Whatever the law of a draw: it is distinct, exists, and both ends agree on it."""
    ranks, total = len(stored), sum(stored)
    assert plan.positions.shape == (ranks, sum(min(count, total) for count in counts))
    for line in range(ranks):
        positions = plan.positions[line][: plan.drawn_by(line)]
        assert (np.diff(positions) >= 0).all()
        assert ((positions >= 0) & (positions < total)).all()
        second = plan.second_of(line)
        for part in (positions[~second], positions[second]):
            assert len(set(part.tolist())) == len(part)
        wanted = [count - (line >= ranks - few) for count, few in zip(counts, fewer, strict=False)]
        assert [(~second).sum(), second.sum()][: len(counts)] == [min(count, total) for count in wanted]
        owners = plan.owners(line)
        for position, owner in zip(positions, owners, strict=True):
            assert sum(stored[:owner]) <= position < sum(stored[: owner + 1])
    sends = np.array([plan.sent_by(owner)[1] for owner in range(ranks)])
    receives = np.array([plan.received_by(destination) for destination in range(ranks)])
    assert (sends == receives.T).all()
    for owner in range(ranks):
        rows, counts_sent = plan.sent_by(owner)
        assert len(rows) == sum(counts_sent)
        assert ((rows >= 0) & (rows < stored[owner])).all()


@given(stored=STORED, counts=COUNTS, fewer=FEWER, step=st.integers(0, 10**6))
def test_every_destination_draws_distinct_samples_that_exist(stored, counts, fewer, step):
    few = fewer_of(fewer, ranks=len(stored), counts=counts)
    check(plan_draw(stored, counts, rng(step), fewer=few), stored, counts, few)


@given(sizes=SIZES, counts=COUNTS, fewer=FEWER, step=st.integers(0, 10**6))
def test_every_destination_draws_distinct_samples_also_by_group(sizes, counts, fewer, step):
    few = fewer_of(fewer, ranks=len(sizes), counts=counts)
    plan = plan_group_draw(sizes, counts, rng(step), fewer=few)
    stored = [sum(size.values()) for size in sizes]
    check(plan, stored, counts, few)
    if len(counts) == 1 and sum(stored) and not any(few):
        for line in plan.positions:
            taken = taken_of_groups(sizes, line)
            held = {group: sum(size.get(group, 0) for size in sizes) for group in taken}
            # Equal shares: whoever gives less than another by more than one has given all it had.
            most = max(taken.values())
            assert all(number >= most - 1 or number == held[group] for group, number in taken.items())


@given(sizes=SIZES, counts=COUNTS, newest=st.sets(st.integers(0, 7)), step=st.integers(0, 10**6))
def test_of_the_newest_groups_nothing_is_drawn_and_all_there_is_of_others(sizes, counts, newest, step):
    plan = plan_earlier_draw(sizes, counts, newest=newest, random=rng(step))
    left = sum(count for size in sizes for group, count in size.items() if group not in newest)
    assert plan.drawn == sum(min(count, left) for count in counts)
    for line in plan.positions:
        taken = taken_of_groups(sizes, line)
        assert sum(taken[group] for group in taken.keys() - newest) == plan.drawn
    if len(counts) == 1:
        assert all(len(set(line.tolist())) == plan.drawn for line in plan.positions)
    sends = np.array([plan.sent_by(owner)[1] for owner in range(len(sizes))])
    receives = np.array([plan.received_by(destination) for destination in range(len(sizes))])
    assert (sends == receives.T).all()


def test_all_that_is_not_of_the_newest_groups_is_drawn_equally_often():
    sizes, counts = [{0: 30, 1: 9, 5: 4}, {}, {1: 60}, {5: 3, 2: 11}], np.zeros(117)
    for step in range(6000):
        plan = plan_earlier_draw(sizes, [5], newest={1, 9}, random=rng(step))
        np.add.at(counts, plan.positions.ravel(), 1)
    of_place = [group for size in sizes for group in sorted(size) for _ in range(size[group])]
    earlier = np.array([group != 1 for group in of_place])
    assert counts[~earlier].sum() == 0
    assert counts[earlier].sum() == 6000 * 4 * 5
    assert chisquare(counts[earlier]).pvalue > 1e-4


def test_before_there_are_others_nothing_is_drawn():
    for sizes in ([{3: 9}, {3: 2}], [{}, {}], [{3: 1}]):
        plan = plan_earlier_draw(sizes, [4, 2], newest={3}, random=rng(0))
        assert plan.positions.shape == (len(sizes), 0)


def taken_of_groups(sizes, positions):
    """How many of these places in the union belong to each group."""
    of_place = [group for size in sizes for group in sorted(size) for _ in range(size[group])]
    groups = [of_place[position] for position in positions]
    return {group: groups.count(group) for group in set(of_place)}


@pytest.mark.parametrize("by", ["samples", "groups", "earlier"])
@pytest.mark.parametrize(("counts", "fewer"), [([1], (3, 0)), ([3], (2, 0)), ([3, 2], (1, 3))])
def test_whoever_draws_one_less_draws_as_uniformly(by, counts, fewer):
    """As where 6 representatives are divided among 4 ranks, which hold unequal numbers or nothing."""
    sizes = [{0: 6, 1: 6}, {}, {0: 3, 1: 3}, {0: 1, 1: 1}]
    plans = {
        "samples": lambda key: plan_draw([12, 0, 6, 2], counts, rng(key), fewer=fewer),
        "groups": lambda key: plan_group_draw(sizes, counts, rng(key), fewer=fewer),
        "earlier": lambda key: plan_earlier_draw(sizes, counts, newest=[7], random=rng(key), fewer=fewer),
    }
    found = np.zeros((4, 20))
    for key in range(3000):
        plan = plans[by](key)
        for line in range(4):
            np.add.at(found[line], plan.positions[line][: plan.drawn_by(line)], 1)
    for line in range(4):
        each = sum(count - (line >= 4 - few) for count, few in zip(counts, fewer, strict=False))
        assert found[line].sum() == 3000 * each
        assert not each or chisquare(found[line]).pvalue > 1e-4


def frequencies(stored, draws, count):
    counts = np.zeros(sum(stored))
    for step in range(draws):
        np.add.at(counts, plan_draw(stored, [count], rng(step)).positions.ravel(), 1)
    return counts


@pytest.mark.parametrize(
    ("stored", "count"),
    [((30, 10, 0, 3), 5), ((30, 10, 0, 3), 20), ((7, 7), 6), ((1, 0, 25), 2), ((43,), 5), ((900, 50), 7)],
)
def test_every_stored_sample_is_drawn_equally_often_with_unequal_and_empty_ranks(stored, count):
    draws = 120_000 // (count * len(stored))
    counts = frequencies(stored, draws, count)
    assert counts.sum() >= 100_000
    assert chisquare(counts).pvalue > 1e-4


def test_the_numbers_per_owner_follow_the_multivariate_hypergeometric_law():
    stored, count, seen = (6, 3, 0, 2), 4, {}
    for step in range(6000):
        plan = plan_draw(stored, [count], rng(step))
        for destination in range(4):
            key = tuple(plan.received_by(destination))
            seen[key] = seen.get(key, 0) + 1
    expected = {key: multivariate_hypergeom.pmf(key, stored, count) * 24_000 for key in seen}
    assert sum(expected.values()) == pytest.approx(24_000)
    assert chisquare(list(seen.values()), list(expected.values())).pvalue > 1e-4


def test_pairs_are_drawn_as_often_as_any_other_pair():
    together = np.zeros((9, 9))
    for step in range(20_000):
        first, second, third = plan_draw((4, 5), [3], rng(step)).positions[0]
        for a, b in ((first, second), (first, third), (second, third)):
            together[a, b] += 1
    assert chisquare(together[np.triu_indices(9, 1)]).pvalue > 1e-4


def test_the_test_of_uniformity_can_fail():
    """An owner first, then one of its rows: what a draw looks like that forgets unequal stores."""
    stored, counts = (30, 10, 0, 3), np.zeros(43)
    for step in range(2000):
        random = rng(step)
        for owner in random.choice([0, 1, 3], 5):
            counts[sum(stored[:owner]) + random.integers(stored[owner])] += 1
    assert chisquare(counts).pvalue < 1e-10


def test_destinations_do_not_draw_the_same():
    positions = plan_draw((500, 500), [20], rng(1)).positions
    assert len(set(positions[0]) & set(positions[1])) < 5


def test_a_draw_depends_on_its_key_and_on_nothing_else():
    keyed = Rekeyed(3, "draw")
    plan = plan_draw((90, 40), [30], keyed.at(0, 2)).positions.tolist()
    keyed.at(7).integers(9, size=5)
    assert plan_draw((90, 40), [30], keyed.at(0, 2)).positions.tolist() == plan
    assert plan_draw((90, 40), [30], generator(3, "draw", 0, 2)).positions.tolist() == plan
    for other in (keyed.at(0, 3), keyed.at(1, 2), generator(4, "draw", 0, 2)):
        assert plan_draw((90, 40), [30], other).positions.tolist() != plan


def test_what_is_planned_ahead_is_what_every_step_plans_by_itself():
    rounds = [(300, 12, 0, 0), (300, 12, 1, 5), (50, 12, 1, 24), (64, 8, 1, 40), (5, 8, 1, 60), (0, 3, 0, 0)]
    rounds += [(64, 0, 0, 0), (300, 12, 0, 0), (300, 12, 0, 7)]  # a run that goes back, too
    rounds += [(300, 11, 0, 8), (300, 11, 1, 9)]  # steered in the middle of what was planned; another branch
    ahead, alone = PlansAhead(Rekeyed(3, "draw")), Rekeyed(3, "draw")
    for stored, count, branch, begin in rounds:
        for step in range(begin, begin + STEPS + 3):
            plan = ahead.plan(stored, count, branch=branch, step=step)
            expected = plan_draw([stored], [count], alone.at(branch, step))
            assert plan.positions.tolist() == expected.positions.tolist()
            assert plan.positions.dtype == expected.positions.dtype
            assert (plan.ends.tolist(), plan.second) == ([stored], None)


def test_words_with_which_small_numbers_would_come_too_often_are_left_to_each_step():
    largest = 2**64 - 1  # 2^64 is 6 above a multiple of 10, and a multiple of 16
    words = [np.array([largest, 1, 2], dtype=np.uint64), np.array([largest - 6, 1, 2], dtype=np.uint64)]
    assert [plan is None for plan in plan_lines(10, words)] == [True, False]
    assert [plan is None for plan in plan_lines(16, words)] == [False, False]
