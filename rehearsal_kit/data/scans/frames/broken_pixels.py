"""Pixels that no mask names: those that never count, and those that count what is not there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

DEAD_BELOW = 30.0
"""Counts that the neighbours of a dead pixel have together in the sample; without beam it would have none,
too. By Poisson's law a pixel that works has none of so many once in 10^13."""
HOT_ABOVE = 10.0
"""A hot pixel has so many times what its brightest neighbour has: a beam that is sampled finely enough for
ptychography is wider than one pixel."""
HOT_COUNTS = 100.0
"""Counts that a hot pixel has in the sample, at least: a few are chance."""


def dead_pixels(sample: NDArray[Any], good: Mask) -> Mask:
    """Pixels (row, column) that hold the same in all frames of a sample while those around them are lit.

    sample: frames (frame, row, column). good: pixels that are not known to be bad. Gaps between modules are
    found, too, from their rim inwards; what lies in the dark may be dead or not, and counts as good.
    """
    from scipy import ndimage  # noqa: PLC0415 - a tenth of what a worker imports, for few files only

    constant = (sample == sample[0]).all(axis=0) & good
    if len(sample) < 2 or not constant.any():
        return np.zeros(good.shape, bool)
    total = sample.sum(axis=0, dtype=np.float64)
    # What is constant in the dark is not looked at any further, which spares the filter for most frames.
    around = np.where(good & ~constant, total, 0.0)
    median = ndimage.median_filter(around, size=5, mode="nearest")
    # One that is full in all frames is constant, too, and what is around it is nearly full.
    found: Mask = constant & (median >= DEAD_BELOW) & (total < median / 4)
    return found


def hot_pixels(sample: NDArray[Any], good: Mask) -> Mask:
    """Pixels (row, column) that count far more than all of their neighbours, in the sum of a sample."""
    from scipy import ndimage  # noqa: PLC0415 - as above

    total = np.where(good, sample.sum(axis=0, dtype=np.float64), 0.0)
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    brightest = ndimage.maximum_filter(total, footprint=around, mode="constant")
    hot: Mask = good & (total >= HOT_COUNTS) & (total > HOT_ABOVE * np.maximum(brightest, 1.0))
    return hot
