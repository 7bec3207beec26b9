"""Fingerprint of named tensors: whether two networks hold the same numbers, in a few characters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from rehearsal_kit.base.digests import DIGITS


def tensor_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint of names and numbers, in the order given; equal exactly when all of these are the same.

    Those of runs stand in their timelines: what is hashed must stay as it is.
    """
    seen = hashlib.sha256()
    for name, tensor in tensors.items():
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:DIGITS]
