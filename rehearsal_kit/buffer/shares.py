"""Equal shares of something among groups that may have less than their share to give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def equal_shares(sizes: Sequence[int] | NDArray[np.int64], total: int) -> tuple[NDArray[np.int64], int]:
    """How many each group gives when all give equally and none more than it has.

    Returns the shares, int64 (group,), every one min(size, level) for the largest level at which they sum
    to at most `total`, and what is left over: less than the number of groups that could give one more.
    """
    had = np.asarray(sizes, dtype=np.int64)
    if int(had.sum()) <= total:
        return had, 0
    low, high = 0, int(had.max())
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if int(np.minimum(had, level).sum()) <= total else (low, level)
    shares = np.minimum(had, low)
    return shares, total - int(shares.sum())
