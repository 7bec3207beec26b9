"""Whether networks hold the same numbers, in a few characters: by all their bytes, or by sums of these."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from rehearsal_kit.base.digests import DIGITS

ADDED, LANES = 256, 16
"""Words that are added up, and how many such sums lie beside each other: so numbers that have changed places
show, and what is left of a tensor is a small part of it."""
WORD = torch.int64.itemsize
BLOCK = ADDED * LANES * WORD


def tensor_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint of names and numbers, in the order given; equal exactly when all of these are the same.

    Those of runs stand in their timelines: what is hashed must stay as it is.
    """
    seen = hashlib.sha256()
    for name, tensor in tensors.items():
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:DIGITS]


def tensor_sums(tensors: Mapping[str, torch.Tensor]) -> str:
    """The same of sums that are made where the tensors lie, in the time that reading them takes.

    Whole numbers are added up, of the bytes as they are, so that the order makes no difference; less than a
    block is not. Equal for the same tensors; different ones meet by chance as seldom as fingerprints do,
    though they can be made to. A device is waited for once.
    """
    seen, told = hashlib.sha256(), dict[torch.device, list[torch.Tensor]]()
    for name, tensor in tensors.items():
        seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        numbers = _bytes(tensor)
        blocks, rest = numbers.tensor_split([len(numbers) // BLOCK * BLOCK])
        sums = blocks.view(torch.int64).view(-1, ADDED, LANES).sum(1)
        told.setdefault(tensor.device, []).extend([sums.view(-1).view(torch.uint8), rest])
    for parts in told.values():
        seen.update(torch.cat(parts).cpu().numpy().data)
    return seen.hexdigest()[:DIGITS]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 (byte,), which may be read word by word: no copy where that can be."""
    numbers = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return numbers.clone() if numbers.storage_offset() % WORD else numbers
