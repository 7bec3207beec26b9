"""Values that detectors write where they have no count: in gaps, in dead pixels, and now and then elsewhere.

Integer detectors write the largest number of their type, or of the narrower type that they count in, and
signed ones -1 or -2; arrays of floating point have NaN there. A file need not have a mask that says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

COUNTERS = (12, 14, 15, 16, 20, 24, 31, 32, 63, 64)
"""Bits of the counters of known detectors; the largest number of each is a marker."""
NEVER_A_COUNT = 2**31 - 1
"""No frame has so many photons in one pixel."""
SATURATED, MARKED = 4, 64
"""What surrounds a pixel that is full is more than a quarter of that; what surrounds a marker in the dark is
less than a 64th."""


class AmbiguousMarkerError(Exception):
    """A value that may be a marker, or the count of a detector that was full."""

    def __init__(self, value: int, row: int, column: int) -> None:
        super().__init__(f"{value} at row {row}, column {column}")


def constant_markers(sample: NDArray[Any], good: Mask) -> Mask:
    """Pixels (row, column) that hold a marker in every frame of a sample that has any counts.

    sample: frames as they lie in the file (frame, row, column). good: pixels that are not known to be bad.

    Raises:
        AmbiguousMarkerError: the largest number of a narrow type, where its neighbours could be full as well.
    """
    lit = sample[sample.any(axis=(1, 2))]  # frames that were never written read as zeros
    none = np.zeros(good.shape, bool)
    if not len(lit):
        return none
    marked = none | (_impossible(lit).all(axis=0) & good)
    for value in _largest_numbers(sample.dtype):
        found = (lit == value).all(axis=0) & good & ~marked
        if found.any():
            typical = np.median(lit[:: max(1, len(lit) // 5)], axis=0)
            marked |= _among_dark(found, typical, value=value, own=value == _largest(sample.dtype))
    return marked


def markers_in(frames: NDArray[Any], good: Mask) -> Mask | None:
    """Pixels (frame, row, column) that hold a marker, in some of the frames; None if no pixel does.

    good: pixels that are not known to be bad; no others are looked at. The largest number of a narrow type
    may be a count as well: it is one but where all around it is dark.
    """
    largest = _largest(frames.dtype)
    if largest is not None and largest < NEVER_A_COUNT:
        found: Mask = (frames == largest) & good
        for number in np.flatnonzero(found.any(axis=(1, 2))):
            dark = np.where(good, frames[number], 0)
            found[number] = _dark_around(found[number], dark, below=largest / MARKED)
    else:
        found = (frames >= NEVER_A_COUNT) & good
        if found.any():
            numbers = [number for number in _largest_numbers(frames.dtype) if number >= NEVER_A_COUNT]
            found &= np.logical_or.reduce([frames == number for number in numbers])
    return found if found.any() else None


def _impossible(frames: NDArray[Any]) -> Mask:
    """NaN, negative, or the largest number of a type in which nobody can count."""
    kind = frames.dtype.kind
    impossible: Mask = np.isnan(frames) if kind == "f" else np.zeros(frames.shape, bool)
    if kind != "u":
        impossible |= frames < 0
    for value in _largest_numbers(frames.dtype):
        if value >= NEVER_A_COUNT:
            impossible |= frames == value
    return impossible


def _largest(dtype: np.dtype[Any]) -> int | None:
    return int(np.iinfo(dtype).max) if dtype.kind in "iu" else None


def _largest_numbers(dtype: np.dtype[Any]) -> list[int]:
    """Largest numbers of the counters that fit into a type, and of the type itself."""
    numbers = {2**bits - 1 for bits in COUNTERS}
    largest = _largest(dtype)
    if largest is None:
        # float32 has no 2^31 - 1; what was converted to it became 2^31.
        return sorted({int(dtype.type(number)) for number in numbers if number < np.finfo(dtype).max})
    return sorted({number for number in numbers if number <= largest} | {largest})


def _among_dark(found: Mask, typical: NDArray[Any], *, value: int, own: bool) -> Mask:
    """Those regions of `found` that are markers and no saturated spots, judged by what lies around them."""
    from scipy import ndimage  # noqa: PLC0415 - a tenth of what a worker imports, for few files only

    marked = np.zeros(found.shape, bool)
    labels, _ = ndimage.label(found, structure=np.ones((3, 3), int))
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        wide = tuple(slice(max(0, axis.start - 1), axis.stop + 1) for axis in place)
        region = labels[wide] == number
        rim = ndimage.binary_dilation(region, np.ones((3, 3), bool)) & ~found[wide]
        around = float(np.median(typical[wide][rim])) if rim.any() else 0.0
        if around < value / MARKED:
            marked[wide] |= region
        elif own and around < value / SATURATED:
            row, column = np.argwhere(labels == number)[0]
            raise AmbiguousMarkerError(value, int(row), int(column))
    return marked


def _dark_around(pixels: Mask, frame: NDArray[Any], *, below: float) -> Mask:
    """Those pixels whose region has only dark pixels around it."""
    from scipy import ndimage  # noqa: PLC0415 - as above

    brightest = ndimage.maximum_filter(np.where(pixels, 0, frame), size=3, mode="nearest")
    labels, count = ndimage.label(pixels, structure=np.ones((3, 3), int))
    around = ndimage.maximum(brightest, labels, np.arange(1, count + 1))
    dark: Mask = np.concatenate([[False], np.asarray(around) < below])[labels]
    return dark
