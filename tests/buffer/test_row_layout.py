"""Rows: every field of a sample side by side, in its dtype or as float16, in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import assert_whole, samples

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.buffer.fields import LONG_ROW
from rehearsal_kit.buffer.row_layout import RowLayout

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=5),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=5, max_size=5),
    count=st.integers(0, 4),
)
def test_whatever_fields_a_sample_has_they_come_back_bit_by_bit(dtypes, shapes, count):
    made = torch.Generator().manual_seed(1)
    fields = {
        f"field {number}": (torch.rand((count, *shape), generator=made) * 100).to(dtype)
        for number, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=False))
    }
    layout = RowLayout.of(fields)
    rows = layout.pack(fields)
    assert rows.shape == (count, layout.words)
    views = layout.unpack_there(torch.empty(rows.shape, dtype=torch.int64).copy_(torch.from_numpy(rows)))
    for each in (fields, views):
        assert np.array_equal(layout.checked(layout.pack_there(each).numpy()).rows, rows)
    back = layout.unpack(rows)
    assert set(back) == set(fields)
    for name, tensor in fields.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(1, 6).t(),
        torch.randn(6, 4)[:, 1],
        torch.randn(1, 3).expand(6, 3),
        torch.randn(6, 3, dtype=torch.complex64).conj(),
        torch.randn(6, 3, dtype=torch.complex64).conj().imag,
        torch.randn(6, 3, 5, 5).to(memory_format=torch.channels_last),
    ],
)
def test_samples_may_lie_anyhow_on_a_device(values):
    layout = RowLayout.of({"values": values})
    assert np.array_equal(layout.pack_there({"values": values}).numpy(), layout.pack({"values": values}))


def test_a_row_is_hardly_larger_than_its_fields():
    layout = RowLayout.of(samples([]))
    assert layout.row_bytes == -(-(4 * 4 + 1 + 8 + 3 * 4 + 1 + 8) // 8) * 8


def test_rows_are_a_copy_and_what_is_unpacked_is_a_view_of_them():
    batch = samples(range(3))
    rows = RowLayout.of(batch).pack(batch)
    for tensor in batch.values():
        tensor.zero_()
    back = RowLayout.of(batch).unpack(rows)
    assert_whole(back)
    rows[:] = 0
    assert not back["image"].any()


def test_only_the_chosen_samples_are_packed():
    layout = RowLayout.of(samples([]))
    back = layout.unpack(layout.pack(samples(range(9)), np.array([7, 2])))
    assert_whole(back)
    assert back["sample_id"].tolist() == [7, 2]


def test_a_transposed_tensor_is_as_good_as_another():
    image = torch.arange(12.0).reshape(2, 3, 2).transpose(1, 2)
    layout = RowLayout.of({"image": image})
    assert torch.equal(layout.unpack(layout.pack({"image": image}))["image"], image)


def test_long_rows_are_copied_like_short_ones():
    image = torch.arange(4.0 * LONG_ROW).reshape(4, LONG_ROW)
    layout = RowLayout.of({"image": image, "label": torch.arange(4)})
    back = layout.unpack(layout.pack({"image": image, "label": torch.arange(4)}, np.array([3, 0])))
    assert torch.equal(back["image"], image[[3, 0]])
    assert back["label"].tolist() == [3, 0]


def test_float16_takes_half_the_room_and_comes_back_as_it_was_rounded():
    outputs = {"outputs": torch.rand(3, 100)}
    whole, half = RowLayout.of(outputs), RowLayout.of(outputs, half=("outputs",))
    assert half.row_bytes == whole.row_bytes // 2
    back = half.unpack(half.pack(outputs))["outputs"]
    assert back.dtype == torch.float32
    assert torch.equal(back, outputs["outputs"].half().float())


def test_a_value_that_float16_cannot_hold_is_refused():
    layout = RowLayout.of({"counts": torch.zeros(0, 1)}, half=("counts",))
    with pytest.raises(SettingsError, match=r"counts, sample 1.*too large for float16"):
        layout.pack({"counts": torch.tensor([[1.0], [1e6]])})
    with pytest.raises(SettingsError, match=r"counts, sample 1.*too large for float16"):
        layout.checked(layout.pack_there({"counts": torch.tensor([[1.0], [1e6]])}).numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", [3, LONG_ROW], ids=["short", "long"])
def test_what_is_not_finite_is_refused_by_the_number_of_its_sample(numbers, dtype, value):
    batch = torch.ones(4, numbers, dtype=dtype)
    batch[2, 1] = value
    layout = RowLayout.of({"image": batch})
    with pytest.raises(SettingsError, match=r"1 of .* image, sample 2 of the batch, are NaN, infinite"):
        layout.pack({"image": batch}, np.array([3, 2, 0]))
    layout.pack({"image": batch}, np.array([3, 1, 0]))
    packed = layout.pack_there({"image": batch[[3, 2, 0]]}).numpy()
    with pytest.raises(SettingsError, match=r"1 of .* image, sample 2 of the batch, are NaN, infinite"):
        layout.checked(packed, chosen=np.array([3, 2, 0]))


def test_nan_is_kept_where_it_is_allowed():
    batch = {"outputs": torch.tensor([[1.0, float("nan")]])}
    layout = RowLayout.of(batch, nan=("outputs",))
    assert layout.unpack(layout.pack(batch))["outputs"].isnan().tolist() == [[False, True]]


@pytest.mark.parametrize("large", [1e30, -1e300])
def test_large_finite_values_are_not_taken_for_infinity(large):
    batch = {"value": torch.full((1, 50), large, dtype=torch.float64)}
    layout = RowLayout.of(batch)
    assert torch.equal(layout.unpack(layout.pack(batch))["value"], batch["value"])


@pytest.mark.parametrize(
    ("fields", "names"),
    [({}, {}), ({"a": torch.tensor(1.0)}, {}), ({"a": torch.zeros(1)}, {"half": ("b",)}),
     ({"a": torch.zeros(1)}, {"nan": ("b",)}), ({"a": torch.zeros(1).long()}, {"half": ("a",)})],
)  # fmt: skip
def test_what_is_no_layout_is_refused(fields, names):
    with pytest.raises(SettingsError, match="first axis for the samples"):
        RowLayout.of(fields, **names)
