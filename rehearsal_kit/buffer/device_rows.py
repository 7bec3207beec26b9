"""Rows of a store in the memory of the device that trains: they are drawn and stored without a host."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.tensor_files import per_block
from rehearsal_kit.base.transfers import BackgroundStream, fetched, sent
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.offered_there import PackedThere
from rehearsal_kit.buffer.row_layout import Accepted, Packed, RowLayout, Words
from rehearsal_kit.buffer.row_memory import HostRows, RowMemory, RowSource


class DeviceRows:
    """Rows on a device, and beside them in host memory what the host reads at every step.

    All that is done with them is done in the order of one background stream, whichever thread asks for it:
    so what a checkpoint reads was written before, and is changed after. torch.OutOfMemoryError if there is no
    such piece of memory.
    """

    def __init__(self, layout: RowLayout, capacity: int, *, beside: BackgroundStream) -> None:
        self._layout = layout
        self._beside = beside
        self._device = beside.device
        with beside.entered():
            self._rows = torch.empty((capacity, layout.words), dtype=torch.int64, device=beside.device)
        self.numbers: Words = np.zeros((capacity, len(layout.number_words)), dtype=np.int64)
        """`RowLayout.number_table` of the rows."""

    def first(self, count: int) -> RowsThere:
        """The rows below this one as they are now, (row, word), as the protocol says."""
        return RowsThere(self, (count, self._layout.words))

    def identities(self, count: int) -> NDArray[np.int64] | None:
        """`sample_id` of each row below this one, (row,), or None."""
        place = self._layout.identity_number
        return None if place is None else self.numbers[:count, place]

    def take(self, rows: Rows, out: Words | None = None) -> Words:
        """Copies of these rows in host memory, (row, word); this waits for the device."""
        out = np.empty((len(rows), self._layout.words), np.int64) if out is None else out
        each = per_block(self._layout.row_bytes)  # what is gathered at once lies there twice
        for begin in range(0, len(rows), each):
            with self._beside.entered():
                gathered = self._rows.index_select(0, self._sent(rows[begin : begin + each]))
                arrived = fetched(gathered)
            out[begin : begin + each] = arrived().numpy()
        return out

    def take_there(self, rows: Rows) -> tuple[torch.Tensor, Words]:
        """Copies of these rows on the device, int64 (row, word), and their `number_table`."""
        with self._beside.entered():
            return self._rows.index_select(0, self._sent(rows)), self.numbers[rows]

    def block(self, begin: int, end: int) -> Words:
        """(row, word): a copy of these in host memory; waits for the device."""
        with self._beside.entered():
            arrived = fetched(self._rows[begin:end])
        return arrived().numpy()

    def write(self, accepted: Accepted | Packed | PackedThere, slots: Rows, which: Rows | None) -> None:
        """Set rows[slots] to these samples[which], as the protocol says."""
        if not isinstance(accepted, PackedThere):
            here = accepted.packed()
            self.put(here.rows if which is None else here.rows[which], slots)
            return
        rows, numbers = accepted.rows_there(which), accepted.numbers
        with self._beside.entered():
            self._rows.index_copy_(0, self._sent(slots), rows)
        self.numbers[slots] = numbers if which is None else numbers[which]

    def put(self, words: Words, slots: Rows) -> None:
        """rows[slots] = these, which are in host memory."""
        with self._beside.entered():
            there = sent(torch.from_numpy(words), self._device)
            self._rows.index_copy_(0, self._sent(slots), there)
        self.numbers[slots] = self._layout.number_table(words)

    def move(self, targets: Rows, origins: Rows) -> None:
        """Set rows[targets] to rows[origins], as the protocol says."""
        each = per_block(self._layout.row_bytes)
        for begin in range(0, len(targets), each):
            into, of = targets[begin : begin + each], origins[begin : begin + each]
            rows, numbers = self.take_there(of)
            with self._beside.entered():
                self._rows.index_copy_(0, self._sent(into), rows)
            self.numbers[into] = numbers

    def load(self, rows: Words | RowSource) -> None:
        """Have these as the first rows, block by block."""
        count, each = rows.shape[0], per_block(self._layout.row_bytes)
        for begin in range(0, count, each):
            end = min(begin + each, count)
            self.put(rows[begin:end], np.arange(begin, end))

    def adopt(self, other: RowMemory, rows: Rows, *, begin: int) -> None:
        """Have these rows of another memory from `begin` on, on the device where they lie there."""
        slots = np.arange(begin, begin + len(rows))
        if not isinstance(other, DeviceRows):
            self.put(other.take(rows), slots)
            return
        there, numbers = other.take_there(rows)
        with self._beside.entered():
            self._rows[begin : begin + len(rows)].copy_(there)
        self.numbers[slots] = numbers

    def _sent(self, rows: Rows) -> torch.Tensor:
        return sent(torch.from_numpy(rows), self._device)


class RowsThere:
    """Rows of a device as they are when they are asked for, in blocks in host memory."""

    nbytes = 0

    def __init__(self, rows: DeviceRows, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._rows = rows

    def __getitem__(self, block: slice) -> Words:
        """A copy of some of them, (row, word)."""
        begin, end, _ = block.indices(self.shape[0])
        return self._rows.block(begin, end)

    def take(self, rows: Rows) -> Words:
        """A copy of these, (row, word)."""
        return self._rows.take(rows)

    def copy_into(self, out: Words) -> None:
        """Copy all of them, (row, word)."""
        each = per_block(out[:1].nbytes)
        for begin in range(0, self.shape[0], each):
            part = out[begin : min(begin + each, self.shape[0])]
            part[:] = self[begin : begin + len(part)]


class RowsOnTheirWay(HostRows):
    """Rows in host memory that are copied to a device block by block, while the store goes on with them."""

    def __init__(self, here: HostRows, there: DeviceRows, layout: RowLayout, *, count: int) -> None:
        """count: rows that are taken."""
        self._layout = layout
        self.words = here.words
        self._there = there
        self._moved = 0
        """Rows below are there as they are here."""
        self._seen = count
        """Rows that were taken when some were copied last."""

    def write(self, accepted: Accepted | Packed | PackedThere, slots: Rows, which: Rows | None) -> None:
        """Write here, and once more there."""
        super().write(accepted, slots, which)
        self._once_more(slots)

    def move(self, targets: Rows, origins: Rows) -> None:
        """Move here, and once more there."""
        super().move(targets, origins)
        self._once_more(targets)

    def go_on(self, count: int, each: int) -> DeviceRows | None:
        """Copy so many more of the first `count` rows; all of them once none is left.

        Faster than they come, where a store fills up meanwhile.
        """
        each = max(each, 2 * (count - self._seen))
        begin, end, self._seen = self._moved, min(self._moved + each, count), count
        if begin < end:
            self._there.put(self.words[begin:end], np.arange(begin, end))
            self._moved = end
        return self._there if self._moved >= count else None

    def _once_more(self, changed: Rows) -> None:
        late = changed[changed < self._moved]
        if len(late):
            self._there.put(self.words[late], late)
