"""Which points of long curves are plotted, so that spikes stay visible and a page is not flooded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

APART = 100
"""The newest tasks have a line of their own."""


def decimate(values: NDArray[np.float64], *, most: int) -> NDArray[np.intp]:
    """Which of `values` to plot: minimum and maximum of each bucket, the first and the last one.

    Spikes stay visible and at most `most` (at least 4) positions come back, in order.
    """
    if len(values) <= most:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    edges = np.linspace(0, len(values), most // 2).astype(int)
    for begin, end in pairwise(edges):
        bucket = values[begin:end]
        kept |= {begin + int(bucket.argmin()), begin + int(bucket.argmax())}
    return np.array(sorted(kept))


def lines_of(tasks: NDArray[np.int_], *, colours: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Line of each task, and colour of each line: of its own for the newest, shared by the older ones."""
    older = max(0, len(tasks) - APART)
    together = max(1, -(-older // APART))
    shared = -(-older // together)
    lines = np.concatenate([np.arange(older) // together, np.arange(len(tasks) - older) + shared])
    return lines, np.concatenate([np.arange(shared), tasks[older:]]) % colours


def _first(lines: NDArray[np.intp]) -> NDArray[np.intp]:
    """Where each line begins."""
    return np.flatnonzero(np.diff(lines, prepend=-1))


def kept_points(values: NDArray[np.floating], lines: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Points of every line: its first and last, lowest and highest of each bucket; four buckets at least."""
    counts = np.bincount(lines)
    buckets = np.maximum(4, most * counts // (2 * len(values)))
    buckets = np.where(counts <= 2 * buckets, counts, buckets)
    first = np.cumsum(counts) - counts
    place = np.arange(len(values)) - first[lines]
    bucket = (np.cumsum(buckets) - buckets)[lines] + place * buckets[lines] // counts[lines]
    order = np.lexsort((values, bucket))
    lowest = _first(bucket)  # in `order` buckets begin where they do in `bucket`, which is sorted
    highest = np.append(lowest[1:], len(values)) - 1
    return np.unique(np.concatenate([order[lowest], order[highest], first, first + counts - 1]))
