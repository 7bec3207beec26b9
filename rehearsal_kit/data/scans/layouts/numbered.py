"""Frames and positions that carry numbers by which they belong together: what was dropped shifts nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile

Numbers = NDArray[np.int64]


def whole_numbers(values: NDArray[np.generic], where: str) -> Numbers:
    """The values as whole numbers (item,); ScanError, which begins with `where`, if they are none."""
    flat = values.reshape(-1).astype(np.float64)
    if not (np.isfinite(flat).all() and np.array_equal(flat, np.floor(flat)) and (abs(flat) < 2**53).all()):
        raise ScanError(f"{where} holds numbers that are not whole; frames are counted by whole ones.")
    return flat.astype(np.int64)


def means_by_number(numbers: Numbers, values: Floats) -> tuple[Numbers, Floats]:
    """The numbers that there are, each once and in order, and the means of the values (item, 2) with them."""
    unique, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    sums = np.zeros((len(unique), values.shape[1]))
    np.add.at(sums, which.reshape(-1), values)
    return unique, sums / counts[:, None]


def counted_from_first(numbers: Numbers, frames: int) -> Numbers:
    """Which frame each trigger number belongs to, from 0; -1 for what was recorded before the first frame.

    Counters of triggers begin at 0 or 1. Where they begin at 0 and there are more of them than frames,
    number 0 is what was recorded before the first trigger.

    numbers: each once and in order. frames: that were to be measured.
    """
    first = int(numbers[0])
    if first == 0 and len(numbers) > frames:
        first = 1
    return np.maximum(numbers - first, -1)


def paired_by_number(
    description: ScanDescription, file: ScanFile, *, frames: Numbers, positions: Numbers
) -> ScanDescription:
    """The same with those frames and positions only that have the same number, in the order of the frames.

    frames, positions: numbers of all of them. A monitor is that of the frames.

    Raises:
        ScanError: a number that two frames or two positions have, no number that both have, or positions
            that are not finite.
    """
    for what, numbers in (("frames", frames), ("positions", positions)):
        if len(np.unique(numbers)) != len(numbers):
            raise ScanError(f"{file.path}: two {what} have the same number; which is which is not known.")
    common, stored, place = np.intersect1d(frames, positions, assume_unique=True, return_indices=True)
    if not len(common):
        raise ScanError(
            f"{file.path}: no frame has a position: frames have the numbers {_range(frames)}, positions "
            f"{_range(positions)}. Give the positions of this scan."
        )
    order = np.argsort(stored)
    chosen, values = stored[order].astype(np.int64), description.positions.values[place[order]]
    if not np.isfinite(values).all():
        raise ScanError(f"{file.path}: holds positions that are not finite; write them anew.")
    left_out = {
        "frames without a position": len(frames) - len(common),
        "positions without a frame": len(positions) - len(common),
    }
    every = len(common) == len(frames)
    return replace(
        description,
        counts=description.counts if every else replace(description.counts, chosen=chosen),
        positions=replace(description.positions, values=values),
        monitor=None if description.monitor is None else description.monitor[chosen],
        left_out={**description.left_out, **{name: count for name, count in left_out.items() if count}},
    )


def _range(numbers: Numbers) -> str:
    return f"{numbers.min()} to {numbers.max()}" if len(numbers) else "none"
