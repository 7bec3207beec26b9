"""What stands in pixels that the detector could not count in: the median of their neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Frames = NDArray[np.float32]

Round = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Pixels (pixel,) and the neighbours (neighbour, pixel) that they are the median of, counted row by row."""
_ROWS, _COLUMNS = np.divmod(np.arange(25), 5)
"""Shifts to the 5 x 5 pixels around a pixel, in an array padded by two."""


class Filling:
    """How frames with the same bad pixels are filled: each with the median of the good ones in 5 x 5 pixels.

    Wide gaps are filled from their rim inwards, a round for each two pixels of their width.
    """

    def __init__(self, good: Mask) -> None:
        self._good = good
        self._rounds: list[Round] = []
        known = good.copy()
        while known.any() and not known.all():
            reached = _with_known_neighbours(known)
            self._rounds.append(reached)
            for pixels, _ in reached:
                known.ravel()[pixels] = True

    def fill(self, counts: Frames, marked: Mask | None = None) -> None:
        """Fill frames (frame, row, column) in place; nothing good means that there are no counts.

        marked: pixels (frame, row, column) that are bad in one frame only.
        """
        alone = np.zeros(len(counts), bool) if marked is None else marked.any(axis=(1, 2))
        for each in np.flatnonzero(alone):
            assert marked is not None  # noqa: S101 - for the type checker
            Filling(self._good & ~marked[each]).fill(counts[each : each + 1])
        if not self._good.any():
            counts[~alone] = 0
        elif self._rounds and not alone.all():
            values = counts[~alone].reshape(-1, self._good.size) if alone.any() else self._flat(counts)
            for reached in self._rounds:
                for pixels, around in reached:
                    values[:, pixels] = _median([values[:, neighbours] for neighbours in around])
            if alone.any():
                counts[~alone] = values.reshape(-1, *self._good.shape)

    def _flat(self, counts: Frames) -> Frames:
        """The same values (frame, pixel), without a copy."""
        flat = counts.view()
        flat.shape = (len(counts), self._good.size)  # raises where it would have to be a copy
        return flat


def _with_known_neighbours(known: Mask) -> Round:
    """Unknown pixels with their known neighbours, by how many there are of these."""
    near = np.pad(known, 2)
    rows, columns = np.nonzero(~known)
    there = near[rows[:, None] + _ROWS, columns[:, None] + _COLUMNS]
    pixels, counts = rows * known.shape[1] + columns, there.sum(axis=1)
    shifts = (_ROWS - 2) * known.shape[1] + _COLUMNS - 2
    found = []
    for count in np.unique(counts[counts > 0]):
        mine = counts == count
        places = np.broadcast_to(shifts, (int(mine.sum()), 25))[there[mine]].reshape(-1, count)
        found.append((pixels[mine], (pixels[mine][:, None] + places).T))
    return found


def _median(rows: list[Frames]) -> Frames:
    """The median of each place over arrays of one shape, by a network of comparisons.

    Comparing whole arrays is many times quicker than sorting the few values of each pixel.
    """
    for low, high in _network(len(rows)):
        rows[low], rows[high] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    middle = len(rows) // 2
    return rows[middle] if len(rows) % 2 else (rows[middle - 1] + rows[middle]) / np.float32(2)


def _network(count: int) -> list[tuple[int, int]]:
    """Pairs to put into order, one after the other, so that so many values are sorted.

    Batcher's odd-even mergesort (AFIPS Spring Joint Computer Conference 1968, 307).
    """
    pairs, span = [], 1
    while span < count:
        step = span
        while step >= 1:
            for begin in range(step % span, count - step, 2 * step):
                pairs += [
                    (low, low + step)
                    for low in range(begin, min(begin + step, count - step))
                    if low // (2 * span) == (low + step) // (2 * span)
                ]
            step //= 2
        span *= 2
    return pairs
