"""Sums stand for tensors as fingerprints do: any difference shows, however the numbers lie in memory."""

from __future__ import annotations

import pytest
import torch

from rehearsal_kit.base.tensor_fingerprint import BLOCK, tensor_fingerprint, tensor_sums

SHAPES = [(), (0,), (7, 5, 3, 3), (BLOCK,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def numbers(shape, dtype):
    made = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 200
    return made.to(dtype) if dtype is not torch.bool else made > 100


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_bit_shows_wherever_it_is(shape, dtype):
    tensor = numbers(shape, dtype)
    before, changed = tensor_sums({"w": tensor}), tensor.clone()
    assert tensor_sums({"w": changed}) == before
    told = {before}
    bits = changed.view(-1).view(torch.uint8)
    places = {0, len(bits) // 3, len(bits) - 1} if len(bits) else {}
    for place in places:
        bits[place] ^= 1
        told.add(tensor_sums({"w": changed}))
        bits[place] ^= 1
    assert len(told) == 1 + len(places)
    assert tensor_sums({"w": changed}) == before


def test_names_shapes_dtypes_and_numbers_that_have_changed_places_show():
    tensor = numbers((4, BLOCK), torch.float32)
    moved = [tensor.roll(1, dims=1), tensor.flip(1), tensor.view(BLOCK, 4), tensor.view(torch.int32)]
    told = [tensor_sums(each) for each in ({"w": tensor}, {"v": tensor}, *({"w": other} for other in moved))]
    assert len(set(told)) == len(told)
    first, second = torch.zeros(2), torch.ones(2)
    assert tensor_sums({"a": first, "b": second}) != tensor_sums({"a": second, "b": first})


@pytest.mark.parametrize("told", [tensor_sums, tensor_fingerprint])
def test_it_makes_no_difference_how_numbers_lie_in_memory(told):
    tensor = numbers((64, 64, 3, 3), torch.float32)
    among_others = torch.cat([torch.zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    by_channels = tensor.contiguous(memory_format=torch.channels_last)
    assert among_others.storage_offset() == 1
    assert by_channels.stride() != tensor.stride()
    assert {told({"w": each}) for each in (tensor, among_others, by_channels)} == {told({"w": tensor})}
