"""The rows of a store as they are at one moment, read once, in order, while the store goes on."""

from __future__ import annotations

import heapq
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SnapshotError
from rehearsal_kit.buffer.row_memory import CurrentRows

STUCK_S = 60.0
"""Without a single row being read for so long, the store waits no longer for room."""


class FrozenRows:
    """Copies nothing at first: a row that the store is about to change is copied before, unless it was read.

    One thread reads, another one changes the store. rows: those of the store that are taken, (row, word).
    spare: the most rows that are copied; where more would be, the store waits until some were read.
    """

    def __init__(self, rows: NDArray[np.int64] | CurrentRows, *, spare: int) -> None:
        self.shape: tuple[int, int] = (rows.shape[0], rows.shape[1])
        self._rows: NDArray[np.int64] | CurrentRows | None = rows
        self._spare = max(1, spare)
        self._read = 0
        """Rows below were read."""
        self._kept: dict[int, NDArray[np.int64]] = {}
        self._next: list[int] = []
        """The rows of these as a heap: to look through all for every block would hold training up."""
        self._turn = threading.Condition()
        self._given_up = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the copies that there are."""
        return sum(row.nbytes for row in list(self._kept.values()))

    @property
    def over(self) -> bool:
        """Whether nobody reads on, so that the store may change as it likes."""
        return self._rows is None

    def __getitem__(self, block: slice) -> NDArray[np.int64]:
        """A copy of these rows; none before them is asked for again. SnapshotError if it was given up."""
        begin, end, _ = block.indices(self.shape[0])
        out = self._going()[begin:end].copy()  # rows that change meanwhile are among those kept
        with self._turn:
            self._going()
            while self._next and self._next[0] < end:
                row = heapq.heappop(self._next)
                kept = self._kept.pop(row)
                if row >= begin:
                    out[row - begin] = kept
            self._read = end
            self._turn.notify_all()
        return out

    def copy_into(self, out: NDArray[np.int64]) -> None:
        """Read all of them."""
        out[:] = self[0 : self.shape[0]]

    def keep(self, changing: NDArray[np.int64]) -> None:
        """Called by the store before it changes these rows, whatever they are to be."""
        with self._turn:
            while (late := self._unread(changing)) and self._rows is not None:
                room = self._spare - len(self._kept)
                if room > 0:  # what is read last is copied first
                    kept = late[-room:]
                    copies = _taken(self._rows, kept)
                    for row, copied in zip(kept, copies, strict=True):
                        self._kept[row] = copied
                        heapq.heappush(self._next, row)
                elif not self._turn.wait(STUCK_S):
                    self._give_up(
                        f"{self._read} of {self.shape[0]} rows were written, then none in {STUCK_S:.0f} s, "
                        "while training needed their place. Is the disk full or very slow?"
                    )

    def close(self) -> None:
        """Nobody reads on."""
        with self._turn:
            self._give_up("")

    def _going(self) -> NDArray[np.int64] | CurrentRows:
        if (rows := self._rows) is None:
            raise SnapshotError(self._given_up or "these rows were let go of before all were read.")
        return rows

    def _unread(self, changing: NDArray[np.int64]) -> list[int]:
        late = changing[(changing >= self._read) & (changing < self.shape[0])]
        return [row for row in np.unique(late).tolist() if row not in self._kept]

    def _give_up(self, why: str) -> None:
        if self._rows is not None:
            self._given_up, self._rows, self._kept, self._next = why, None, {}, []
        self._turn.notify_all()


def _taken(rows: NDArray[np.int64] | CurrentRows, wanted: list[int]) -> list[NDArray[np.int64]]:
    """A copy of each of these rows, which lives as long as it is held."""
    if isinstance(rows, np.ndarray):
        return [rows[row].copy() for row in wanted]
    return [row.copy() for row in rows.take(np.array(wanted, dtype=np.int64))]


def release(rows: Any) -> None:
    """Let go of rows, whatever they are, once they were written or never will be."""
    if isinstance(rows, FrozenRows):
        rows.close()
