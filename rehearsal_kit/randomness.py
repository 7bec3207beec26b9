"""Random numbers keyed by what they are for, so that nothing depends on timing or on order of calls."""

from __future__ import annotations

import hashlib
import struct

import numpy as np


def key(seed: int, purpose: str, *numbers: int) -> bytes:
    """16 bytes that depend on every argument and on nothing else."""
    packed = struct.pack(f"<{len(numbers) + 1}q", seed, *numbers) + purpose.encode()
    return hashlib.blake2b(packed, digest_size=16).digest()


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A counter-based generator for one purpose, for example ("draw", branch, step).

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): any two different
    keys give independent streams, so every rank can compute what any other rank draws.
    """
    words = np.frombuffer(key(seed, purpose, *numbers), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


def torch_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for a torch generator, keyed in the same way."""
    return int.from_bytes(key(seed, purpose, *numbers)[:8], "little") >> 1
