"""The memory in which the rows of a store lie: here that of the host."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.offered_there import PackedThere
from rehearsal_kit.buffer.row_layout import Accepted, Packed, RowLayout, Words


class RowSource(Protocol):
    """Rows that are not in memory as a whole: asked for in blocks, in order, and never held twice."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and words."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""

    def __getitem__(self, block: slice, /) -> Words:
        """Some of the rows, (row, word)."""

    def copy_into(self, out: Words) -> None:
        """All of them, (row, word)."""


class CurrentRows(RowSource, Protocol):
    """Rows as they are when they are asked for."""

    def take(self, rows: Rows) -> Words:
        """A copy of these, (row, word)."""


class RowMemory(Protocol):
    """Memory for as many rows as a store may hold, by their numbers there; one thread changes them."""

    def first(self, count: int) -> Words | CurrentRows:
        """The rows below this one as they are now, (row, word); no copy."""

    def identities(self, count: int) -> NDArray[np.int64] | None:
        """`sample_id` of each row below this one: (row,); None where samples have none."""

    def take(self, rows: Rows, out: Words | None = None) -> Words:
        """(row, word): copies of these rows in host memory; into `out` if given."""

    def write(self, accepted: Accepted | Packed | PackedThere, slots: Rows, which: Rows | None) -> None:
        """rows[slots] = these samples[which], None: all in order. No slot comes twice."""

    def move(self, targets: Rows, origins: Rows) -> None:
        """rows[targets] = rows[origins], none of which is a target."""

    def load(self, rows: Words | RowSource) -> None:
        """Have these as the first ones."""

    def adopt(self, other: RowMemory, rows: Rows, *, begin: int) -> None:
        """Have these rows of another memory, in this order, from `begin` on."""


class HostRows:
    """Rows in host memory, which is given to a process as it is written to."""

    def __init__(self, layout: RowLayout, capacity: int) -> None:
        self._layout = layout
        self.words: Words = np.zeros((capacity, layout.words), dtype=np.int64)

    def first(self, count: int) -> Words:
        """The rows below this one as they are now, (row, word), as the protocol says."""
        return self.words[:count]

    def identities(self, count: int) -> NDArray[np.int64] | None:
        """`sample_id` of each row below this one, (row,), or None."""
        return self._layout.packed_identities(self.words[:count])

    def take(self, rows: Rows, out: Words | None = None) -> Words:
        """Copies of these rows in host memory, (row, word); into `out` if given."""
        if out is None:
            return self.words.take(rows, axis=0)
        # "clip" only spares numpy a buffer: the rows exist.
        return np.take(self.words, rows, axis=0, out=out, mode="clip")

    def write(self, accepted: Accepted | Packed | PackedThere, slots: Rows, which: Rows | None) -> None:
        """Set rows[slots] to these samples[which], as the protocol says."""
        here = accepted.in_host() if isinstance(accepted, PackedThere) else accepted
        here.copy_into(self.words, slots, which)

    def move(self, targets: Rows, origins: Rows) -> None:
        """Set rows[targets] to rows[origins], as the protocol says."""
        for target, origin in zip(targets.tolist(), origins.tolist(), strict=True):
            self.words[target] = self.words[origin]

    def load(self, rows: Words | RowSource) -> None:
        """Have these as the first rows."""
        out = self.words[: rows.shape[0]]
        if isinstance(rows, np.ndarray):
            out[:] = rows
        else:
            rows.copy_into(out)

    def adopt(self, other: RowMemory, rows: Rows, *, begin: int) -> None:
        """Have these rows of another memory from `begin` on."""
        other.take(rows, out=self.words[begin : begin + len(rows)])
