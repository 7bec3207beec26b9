"""Many tensors at once come out as one by one, bit for bit, by as many kernels as for few of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.learning.many_tensors import (
    PIECE_BYTES,
    changes,
    copies,
    draw_towards,
    overwrite,
    put_back,
)
from rehearsal_kit.learning.module_state import ModuleBuffers
from rehearsal_kit.learning.weight_average import WeightAverage

MOVES = (
    "empty",
    "empty_like",
    "empty_strided",
    "detach",
    "view",
    "_unsafe_view",
    "split",
    "split_with_sizes",
)
"""Operations that compute nothing."""


class Kernels(TorchDispatchMode):
    """While it is entered: how often torch is asked to compute something."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        self.count += name not in MOVES
        return function(*arguments, **(named or {}))


def some(seed: int, *, numbers: bool = True) -> list[torch.Tensor]:
    """Tensors of many kinds, some not in one piece, some of no number; numbers: also those without a mean."""
    random = torch.Generator().manual_seed(seed)
    floats = [
        torch.randn(3, 4, generator=random),
        torch.randn(5, 2, generator=random).T,
        torch.randn(2, 3, 4, 4, generator=random).to(memory_format=torch.channels_last),
        torch.randn((), generator=random),
        torch.randn(0, 4, generator=random),
        torch.tensor([float("nan"), float("inf"), -0.0, 1e-40]),
        torch.randn(7, generator=random).bfloat16(),
        torch.randn(7, generator=random, dtype=torch.float64),
        torch.view_as_complex(torch.randn(3, 2, generator=random)),
    ]
    counters = [torch.randint(0, 9, (3,), generator=random), torch.tensor(seed % 2 == 1)]
    return [*floats, *(counters if numbers else [])]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for first, second in zip(one, other, strict=True):
        assert (first.shape, first.dtype, first.stride()) == (second.shape, second.dtype, second.stride())
        alike = torch.view_as_real if first.is_complex() else lambda tensor: tensor
        torch.testing.assert_close(alike(first), alike(second), rtol=0, atol=0, equal_nan=True)


def one_by_one(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors]


def test_copies_are_as_each_and_nobody_elses():
    tensors = some(1)
    copied = copies(tensors)
    same(copied, tensors)
    for tensor in tensors:
        tensor.zero_()
    same(copied, some(1))


def test_overwritten_and_moved_as_each():
    tensors, values = some(1), some(2)
    overwrite(tensors, values)
    same(tensors, some(2))
    moved, each = some(1, numbers=False), one_by_one(some(1, numbers=False))
    draw_towards(moved, some(2, numbers=False), 0.3)
    for tensor, value in zip(each, some(2, numbers=False), strict=True):
        tensor.lerp_(value, 0.3)
    same(moved, each)


@pytest.mark.parametrize(("where", "seed"), [(1.0, 1), (0.0, 2)])
def test_put_back_or_left_as_each(where, seed):
    tensors = some(2)
    put_back(tensors, some(1), where=torch.tensor(where))
    same(tensors, some(seed))


@pytest.mark.parametrize("place", range(len(some(1))))
def test_a_single_number_that_changes_is_found_and_nan_is_no_change(place):
    before, now = some(1), some(1)
    assert not any(changes(before, now))
    if now[place].numel():
        last = (-1,) * now[place].dim()
        now[place][last] = 0 if now[place].dtype == torch.bool else 5
        assert sum(map(bool, changes(before, now))) == 1


class Joined(TorchDispatchMode):
    """The bytes of what is joined or made at once, at most, while it is entered."""

    most = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        if isinstance(made, torch.Tensor) and function._schema.name in ("aten::cat", "aten::where"):
            self.most = max(self.most, made.nbytes)
        return made


def test_no_more_is_joined_at_once_than_one_piece():
    """A network of gigabytes leaves no room for a second and a third one beside it."""
    weights, others = ([torch.empty(2**20, device="meta") for _ in range(64)] for _ in range(2))
    unless = torch.zeros((), device="meta")
    with Joined() as joined:
        draw_towards(weights, others, 0.5, unless=unless)
        put_back(weights, others, where=unless)
        changes(weights, others)
    assert 0 < joined.most <= PIECE_BYTES == 16 * 2**20


def network(layers: int, device: str) -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.BatchNorm1d(3) for _ in range(layers))).to(device)


def of_buffers(layers: int) -> int:
    """Kernels for the buffers of a network around one step on a GPU, its forward pass left out."""
    normalised = network(layers, "meta")
    for module in normalised:  # what no step changes, too
        module.register_buffer("table", torch.zeros(3, device="meta"))
    with Kernels() as before:
        buffers = ModuleBuffers(normalised, persistent=(), by_value=False)
    normalised(torch.zeros(4, 3, device="meta"))
    with Kernels() as after:
        changed = buffers.look()
        buffers.unseen()
        buffers.means(changed)
        buffers.share(changed, ProcessGroups(0, 1), source=0)
        buffers.leave(torch.zeros((), device="meta"))
    assert any(changed)
    assert not all(changed)
    return before.count + after.count


def of_an_average(layers: int) -> int:
    weights = network(layers, "meta").state_dict()
    average = WeightAverage(weights, decay=0.9)
    with Kernels() as kernels:
        average.follow(weights, unless=torch.zeros((), device="meta"))
    return kernels.count


@pytest.mark.parametrize("kernels_of", [of_buffers, of_an_average])
def test_a_larger_network_takes_no_more_kernels(kernels_of):
    few = kernels_of(2)
    assert few > 0
    assert kernels_of(20) == few
