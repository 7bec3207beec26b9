"""Errors, forgetting and the gap closed, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from ranks import on_ranks

from rehearsal_kit.groups import Groups
from rehearsal_kit.quality import FieldErrors, final_error, forgetting, gap_closed

MATRIX = [[0.1, None, None], [0.3, 0.2, None], [0.4, 0.25, 0.1]]


def test_forgetting_is_final_minus_best_earlier_over_all_tasks_but_the_last():
    assert forgetting(MATRIX) == pytest.approx(((0.4 - 0.1) + (0.25 - 0.2)) / 2)
    assert forgetting(MATRIX[:1]) is None
    assert final_error(MATRIX) == pytest.approx(0.25)
    assert math.isnan(final_error([]))


def test_a_task_that_was_set_aside_is_left_out():
    with_hole = [[0.1, None, None], [None] * 3, [0.4, None, 0.1]]
    assert forgetting(with_hole) == pytest.approx(0.3)
    assert final_error(with_hole) == pytest.approx(0.25)


def test_gap_closed_with_one_seed_says_so():
    result = gap_closed([0.2], incremental=[0.5], from_scratch=[0.1])
    assert result.closed == pytest.approx(0.75)
    assert "one seed" in result.verdict


def test_gap_closed_with_several_seeds():
    result = gap_closed([0.2, 0.2, 0.2], incremental=[0.5, 0.52, 0.48], from_scratch=[0.1, 0.1, 0.1])
    assert result.closed == pytest.approx(0.75)
    assert "3 seeds" in result.verdict


@pytest.mark.parametrize(
    ("incremental", "from_scratch"),
    [([0.5, 0.2, 0.1], [0.1, 0.15, 0.2]), ([0.1, 0.1], [0.2, 0.2]), ([0.1], [0.2])],
)
def test_no_gap_where_it_is_not_above_twice_the_spread(incremental, from_scratch):
    result = gap_closed(from_scratch, incremental=incremental, from_scratch=from_scratch)
    assert result.closed is None
    assert result.verdict.startswith("no gap")


def phases() -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.linspace(-3, 3, 40).reshape(10, 1, 2, 2)
    noise = torch.tensor([0.05, -0.05]).repeat(20).reshape(10, 1, 2, 2)
    return truth, noise


def test_the_free_constant_of_a_scan_and_whole_turns_are_no_error():
    truth, noise = phases()
    errors = FieldErrors()
    errors.add({"phase": truth + noise + 2.5 + 2 * math.pi}, {"phase": truth})
    assert errors.over_all(Groups(0, 1))["phase"] == pytest.approx(0.05, abs=1e-6)


def test_a_constant_that_differs_from_patch_to_patch_is_an_error():
    truth, _ = phases()
    turned = truth + torch.linspace(-0.5, 0.5, 10).reshape(10, 1, 1, 1)
    errors = FieldErrors()
    errors.add({"phase": turned}, {"phase": truth})
    assert errors.over_all(Groups(0, 1))["phase"] > 0.2


def half_each(groups: Groups) -> dict[str, float]:
    truth, noise = phases()
    errors = FieldErrors()
    share = slice(0, 7) if groups.rank == 0 else slice(7, 10)
    errors.add(
        {"phase": (truth + noise + 1.0)[share], "amplitude": torch.full((10, 1, 2, 2), 0.5)[share]},
        {"phase": truth[share], "amplitude": torch.zeros(10, 1, 2, 2)[share]},
    )
    return errors.over_all(groups)


def test_unequal_parts_on_two_ranks_give_the_error_of_the_whole(tmp_path):
    first, second = on_ranks(2, tmp_path, half_each)
    assert first == second
    assert first == pytest.approx({"phase": 0.05, "amplitude": 0.5}, abs=1e-6)
