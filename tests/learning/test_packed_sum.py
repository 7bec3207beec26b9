"""Named parts in one vector: where they lie, that they come back, and what is not packed."""

from __future__ import annotations

import pytest
import torch

from rehearsal_kit.base.errors import RankError
from rehearsal_kit.learning.packed_sum import PackedSum

VECTOR = PackedSum({"gradients": 4, "none": 0, "flags": 1, "counts": 2}, dtype=torch.float64, device="cpu")
PARTS = {
    "counts": [3, 4],
    "flags": [True],
    "none": [],
    "gradients": [torch.tensor([[1.0, 2.0]]), torch.tensor([5, 6])],
}


def test_parts_lie_in_the_order_of_the_layout_and_come_back_under_their_names():
    packed = VECTOR.pack(PARTS)
    assert packed.dtype == torch.float64
    assert packed.tolist() == [1, 2, 5, 6, 1, 3, 4]
    parts = VECTOR.unpack(2 * packed)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "gradients": [2, 4, 10, 12],
        "none": [],
        "flags": [2],
        "counts": [6, 8],
    }


def test_parts_of_the_sum_are_views_and_no_copies():
    packed = VECTOR.pack(PARTS)
    assert VECTOR.unpack(packed)["gradients"].data_ptr() == packed.data_ptr()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"counts": [3]}, "counts has 1 numbers .*; 2 were laid out"),
        ({"gradients": [torch.zeros(2, 3)]}, "gradients has 6 numbers .*; 4 were laid out"),
        ({"others": [1]}, r"'others'\] were to be added up .*; laid out are \['gradients', "),
    ],
)
def test_what_was_not_laid_out_so_is_not_added_to_something_else(changes, says):
    with pytest.raises(RankError, match=says):
        VECTOR.pack({**PARTS, **changes})
