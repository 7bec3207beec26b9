"""The local store: bounded, quotas per group, and rows that stay whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rehearsal_kit.buffer import RehearsalBuffer, RowLayout
from rehearsal_kit.errors import SettingsError


def samples(numbers, dtype=torch.float32):
    """Unique values in every field of every sample, so that any mix-up shows."""
    numbers = torch.as_tensor(list(numbers), dtype=torch.int64)
    image = (numbers[:, None, None] + torch.tensor([[0.0, 0.25], [0.5, 0.75]])).to(dtype)
    return {"image": image, "target": -image, "sample_id": numbers}


def held(buffer):
    return buffer.layout.unpack(buffer.gather(np.arange(len(buffer))))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_row_comes_back_as_it_was_and_shares_no_memory(dtype):
    given_samples = samples(range(5), dtype)
    layout = RowLayout.of(given_samples)
    rows = layout.pack(given_samples)
    back = layout.unpack(rows)
    rows.zero_()
    assert rows.shape == (5, 2 * 4 * dtype.itemsize + 8)
    assert all(
        torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype
        for name, tensor in given_samples.items()
    )


@given(
    capacity=st.integers(0, 20),
    batches=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=25),
)
def test_never_more_than_capacity_no_slot_lost_or_shared_groups_consistent(capacity, batches):
    layout = RowLayout.of(samples([]))
    buffer = RehearsalBuffer(layout, capacity)
    group_of, offered, number = {}, 0, 0
    for group, size in batches:
        batch = range(number, number + size)
        buffer.offer(samples(batch), [group] * size, rng(number))
        group_of.update(dict.fromkeys(batch, group))
        number, offered = number + size, offered + size
        kept = held(buffer)
        identities = kept["sample_id"].tolist()
        assert len(buffer) == min(capacity, offered)
        assert len(set(identities)) == len(identities)
        assert torch.equal(kept["image"], samples(identities)["image"])
        assert torch.equal(kept["target"], samples(identities)["target"])
        sizes = {g: n for g, n in buffer.group_sizes().items() if n}
        assert sizes == {
            g: sum(group_of[i] == g for i in identities) for g in {group_of[i] for i in identities}
        }


def test_a_group_with_its_share_evicts_only_its_own():
    buffer = RehearsalBuffer(RowLayout.of(samples([])), 30)
    buffer.offer(samples(range(100)), [0] * 100, rng())
    buffer.offer(samples(range(100, 300)), [1] * 200, rng(1))
    assert buffer.group_sizes() == {0: 15, 1: 15}
    before = sorted(i for i in held(buffer)["sample_id"].tolist() if i < 100)
    buffer.offer(samples(range(300, 900)), [1] * 600, rng(2))
    assert sorted(i for i in held(buffer)["sample_id"].tolist() if i < 100) == before


def test_groups_appear_as_they_come_and_share_the_room():
    buffer = RehearsalBuffer(RowLayout.of(samples([])), 12)
    for group in range(4):
        buffer.offer(samples(range(100 * group, 100 * group + 50)), [group] * 50, rng(group))
    assert buffer.group_sizes() == {0: 3, 1: 3, 2: 3, 3: 3}


def test_more_groups_than_rows_still_fit():
    buffer = RehearsalBuffer(RowLayout.of(samples([])), 3)
    for group in range(8):
        buffer.offer(samples([group]), [group], rng(group))
    assert len(buffer) == sum(buffer.group_sizes().values()) == 3


def test_another_shape_is_refused_with_both_shapes():
    buffer = RehearsalBuffer(RowLayout.of(samples([])), 3)
    wrong = samples(range(2)) | {"image": torch.zeros(2, 3, 3)}
    with pytest.raises(SettingsError, match=r"\(3, 3\).*\(2, 2\)"):
        buffer.offer(wrong, [0, 0], rng())
