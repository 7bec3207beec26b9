"""Random numbers keyed by what they are for, so that nothing depends on timing or on order of calls."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np


def key(seed: int, purpose: str, *numbers: int) -> bytes:
    """16 bytes that depend on every argument and on nothing else."""
    packed = struct.pack(f"<{len(numbers) + 1}q", seed, *numbers) + purpose.encode()
    return hashlib.blake2b(packed, digest_size=16).digest()


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A counter-based generator for one purpose, for example ("draw", branch, step).

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): seed and purpose are the
    key, up to three numbers from 0 to 2^64 - 1 the upper words of the counter. Any two that differ give
    independent streams, so every rank can compute what any other rank draws.
    """
    return Rekeyed(seed, purpose).at(*numbers)


class Rekeyed:
    """One generator that is set anew for every use: the numbers of `generator` without building one.

    For what is drawn at every step. Each use ends the one before it; one thread only.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        words = np.frombuffer(key(seed, purpose), dtype=np.uint64)
        self._philox = np.random.Philox(key=words)
        self._generator = np.random.Generator(self._philox)
        self._start = _as_integers(self._philox.state)  # a copy, as it is before the first number
        self._counter: list[int] = self._start["state"]["counter"]

    def at(self, first: int = 0, second: int = 0, third: int = 0) -> np.random.Generator:
        """The generator, with the numbers of `generator(seed, purpose, first, second, third)`."""
        self._counter[1:] = first, second, third  # the lowest word counts what is drawn
        self._philox.state = self._start
        return self._generator


def _as_integers(state: Any) -> Any:
    """A state with lists in place of arrays, from which numpy takes it several times as fast."""
    if isinstance(state, Mapping):
        return {name: _as_integers(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def torch_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for a torch generator, keyed in the same way."""
    return int.from_bytes(key(seed, purpose, *numbers)[:8], "little") >> 1
