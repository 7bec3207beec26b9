"""Forgetting, transfer, and strategies beside each other, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.reports.measures import (
    average_error,
    backward_transfer,
    beside,
    final_error,
    forgetting,
    forward_transfer,
    gap_closed,
)

MATRIX = [[0.1, None, None], [0.3, 0.2, None], [0.4, 0.25, 0.1]]
SET_ASIDE = [[0.1, None, None], [None] * 3, [0.4, None, 0.1]]


def test_forgetting_is_final_minus_best_earlier_over_all_tasks_but_the_last():
    assert forgetting(MATRIX) == pytest.approx(((0.4 - 0.1) + (0.25 - 0.2)) / 2)
    assert forgetting(MATRIX[:1]) is None
    assert final_error(MATRIX) == pytest.approx(0.25)
    assert math.isnan(final_error([]))


def test_a_task_that_was_set_aside_is_left_out():
    assert forgetting(SET_ASIDE) == pytest.approx(0.3)
    assert final_error(SET_ASIDE) == pytest.approx(0.25)
    assert backward_transfer(SET_ASIDE) == pytest.approx(-0.3)
    assert average_error(SET_ASIDE) == pytest.approx((0.1 + 0.25) / 2)


def test_forgetting_with_holes_is_a_lower_bound():
    whole = [[0.2, None, None], [0.1, 0.2, None], [0.4, 0.25, 0.1]]
    with_hole = [whole[0], [None, 0.2, None], whole[2]]
    assert forgetting(whole) == pytest.approx((0.3 + 0.05) / 2)
    assert forgetting(with_hole) == pytest.approx((0.2 + 0.05) / 2)


def test_backward_transfer_is_negative_where_tasks_were_forgotten():
    # The best earlier error does not matter, only the one right after the task.
    matrix = [[0.2, 0.9, None], [0.1, 0.2, None], [0.4, 0.15, 0.1]]
    assert backward_transfer(matrix) == pytest.approx(((0.2 - 0.4) + (0.2 - 0.15)) / 2)
    assert backward_transfer([[None, None], [0.1, 0.2]]) is None
    assert backward_transfer(MATRIX[:1]) is None
    assert backward_transfer([]) is None


def test_forward_transfer_is_positive_where_earlier_tasks_help():
    assert forward_transfer([0.9, 0.5, 0.7], [0.2, 0.8, 0.6]) == pytest.approx((0.3 - 0.1) / 2)
    assert forward_transfer([0.9, None, 0.7, 0.1], [0.2, 0.8, 0.6, None]) == pytest.approx(-0.1)
    assert forward_transfer([0.9], [0.2]) is None
    assert forward_transfer([], []) is None
    with pytest.raises(SettingsError, match="one per task"):
        forward_transfer([0.9, 0.5], [0.2])


def test_average_error_is_over_the_tasks_trained_so_far():
    assert average_error(MATRIX) == pytest.approx((0.1 + 0.25 + 0.25) / 3)
    assert average_error([[0.1, 9.0], [0.3, 0.2]]) == pytest.approx((0.1 + 0.25) / 2)
    assert average_error([[0.1, None], [None, 0.2]]) == pytest.approx(0.15)
    assert average_error([[None]]) is None


def test_gap_closed_with_one_seed_says_so():
    result = gap_closed([0.2], incremental=[0.5], from_scratch=[0.1])
    assert result.closed == pytest.approx(0.75)
    assert result.spread is None
    assert result.verdict == "0.75 (one seed, no spread known)"


def test_gap_closed_with_several_seeds_has_the_spread_of_the_shares():
    result = gap_closed([0.2, 0.2, 0.2], incremental=[0.5, 0.52, 0.48], from_scratch=[0.1, 0.1, 0.1])
    assert result.closed == pytest.approx(0.75)
    assert result.spread == pytest.approx(0.05)  # of 0.75, 0.8 and 0.7
    assert result.verdict == "0.75 +- 0.05 (3 seeds)"


def test_a_share_below_twice_its_spread_is_unresolved():
    result = gap_closed([0.3, 0.45, 0.6], incremental=[0.5, 0.5, 0.5], from_scratch=[0.1, 0.1, 0.1])
    assert result.closed == pytest.approx(0.125)
    assert result.spread == pytest.approx(0.375)  # of 0.5, 0.125 and -0.25
    assert result.verdict.startswith("unresolved: 0.1")


@pytest.mark.parametrize(
    ("incremental", "from_scratch"),
    [
        ([0.5, 0.2, 0.1], [0.1, 0.15, 0.2]),
        ([0.1, 0.1], [0.2, 0.2]),
        ([0.1], [0.2]),
        ([0.5, math.nan], [0.1, 0.1]),
    ],
)
def test_no_gap_where_it_is_not_above_twice_the_spread(incremental, from_scratch):
    result = gap_closed(from_scratch, incremental=incremental, from_scratch=from_scratch)
    assert result.closed is None
    assert result.verdict.startswith("no gap")


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.10, 0.20, 0.30], [0.109, 0.212, 0.315], "lower by 0.012 +- 0.003"),
        ([0.109, 0.212, 0.315], [0.10, 0.20, 0.30], "higher by 0.012 +- 0.003"),
        ([0.105, 0.20, 0.297], [0.10, 0.20, 0.30], "unresolved (diff 0.00067 +- 0.004)"),
        ([0.102, 0.206, 0.31], [0.1, 0.2, 0.3], "unresolved (diff 0.006 +- 0.004)"),
        ([0.1, 0.2], [0.1, 0.2], "unresolved (diff 0 +- 0)"),
        ([0.1, math.nan], [0.1, 0.2], "unresolved (diff nan +- nan)"),
        ([0.1], [0.2], "one seed"),
    ],
)
def test_two_strategies_of_paired_seeds(first, second, verdict):
    assert beside(first, second) == verdict


def test_seeds_that_do_not_pair_are_refused():
    with pytest.raises(SettingsError, match="one per seed"):
        beside([0.1, 0.2], [0.1])
    with pytest.raises(SettingsError, match="one per seed"):
        gap_closed([0.1], incremental=[0.1, 0.2], from_scratch=[0.1, 0.2])
    with pytest.raises(SettingsError, match="at least one seed"):
        beside([], [])
