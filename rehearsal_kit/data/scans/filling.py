"""What stands in pixels that the detector could not count in: the median of their neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def fill(counts: NDArray[np.float32], good: Mask, marked: Mask | None) -> None:
    """Set bad pixels to the median of the good ones in 5 x 5 pixels around, in place.

    marked: pixels (frame, row, column) that are bad in one frame only.
    """
    alone = np.zeros(len(counts), bool) if marked is None else (marked & good).any(axis=(1, 2))
    for each in np.flatnonzero(alone):
        assert marked is not None  # noqa: S101 - for the type checker
        _fill_alike(counts[each : each + 1], good & ~marked[each])
    if alone.any():
        others = counts[~alone]
        _fill_alike(others, good)
        counts[~alone] = others
    else:
        _fill_alike(counts, good)


def _fill_alike(counts: NDArray[np.float32], good: Mask) -> None:
    """Fill frames that have the same bad pixels, wide gaps from their rim inwards."""
    known = good.copy()
    if not known.any():
        counts[:] = 0
        return
    while not known.all():
        near = np.pad(known, 2)
        rows, columns = np.nonzero(~known)
        around = _neighbours(rows, columns)
        has_known = near[around].any(axis=1)
        rows, columns = rows[has_known], columns[has_known]
        around = tuple(axis[has_known] for axis in around)
        for frame in counts:
            values = np.where(near[around], np.pad(frame, 2)[around], np.nan)
            frame[rows, columns] = np.nanmedian(values, axis=1)
        known[rows, columns] = True


def _neighbours(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Rows and columns (pixel, 25) of the 5 x 5 neighbourhood in an array padded by 2."""
    row_shift, column_shift = np.divmod(np.arange(25), 5)
    return rows[:, None] + row_shift, columns[:, None] + column_shift
