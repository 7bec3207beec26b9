"""The reconstruction of a scan: an array of the whole object, or patches that are put together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ObjectPlace
from rehearsal_kit.data.scans.doors.scan_file import Dataset, ScanFile

BLOCK_BYTES = 2**27
"""Patches that are read at once take no more than this."""


def shape_of_object(dataset: Dataset, at: str) -> tuple[tuple[int, int] | None, int | None, str]:
    """Rows and columns of an object, the number of its layer if it has any, and why it is none if so."""
    if dataset.ndim not in (2, 3) or dataset.dtype.kind not in "ciuf" or not dataset.size:
        return None, None, f"{at} is {dataset.dtype} of shape {dataset.shape}, no object (row, column)"
    if dataset.ndim == 3 and dataset.shape[0] > 1:
        reason = f"{at} has {dataset.shape[0]} layers; only objects of one layer can be trained on"
        return None, None, reason
    rows, columns = dataset.shape[-2:]
    return (rows, columns), 0 if dataset.ndim == 3 else None, ""


def object_of(file: ScanFile, place: ObjectPlace, positions_px: NDArray[np.float64]) -> NDArray[np.complex64]:
    """The reconstruction (row, column) of a scan.

    file: the scan's own, open. positions_px: centres of the patches, in pixels of the object.

    Raises:
        ScanError: it cannot be read any more, has changed, or holds values that are not finite.
    """
    source = file.other(place.path.absolute())
    if place.patches:
        values = _stitched(source, place, positions_px)
    else:
        shapes = (place.shape,) if place.layer is None else ((place.layer + 1, *place.shape),)
        values = source.values(place.at, shapes=shapes, kinds="ciuf")
        values = values if place.layer is None else values[place.layer]
    found: NDArray[np.complex64] = values.astype(np.complex64)
    if not np.isfinite(found).all():
        raise ScanError(f"{source.path}: {place.at} holds NaN or infinite values; mend or remove it.")
    return found


def _stitched(
    source: ScanFile, place: ObjectPlace, positions_px: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """The mean of all patches where each lies; what none covers is zero."""
    patches = source.dataset(place.at)
    total, weight = np.zeros(place.shape, np.complex128), np.zeros(place.shape)
    rows, columns = patches.shape[-2:]
    corners = np.floor(positions_px - np.array([rows, columns]) / 2 + 0.5).astype(int)
    each = max(1, BLOCK_BYTES // (patches.nbytes // len(patches) or 1))
    for begin in range(0, len(corners), each):
        block = np.asarray(patches[begin : begin + each])
        for patch, (top, left) in zip(block, corners[begin : begin + each], strict=True):
            here = slice(max(top, 0), max(top + rows, 0)), slice(max(left, 0), max(left + columns, 0))
            inside = total[here].shape
            total[here] += patch[max(-top, 0) :, max(-left, 0) :][: inside[0], : inside[1]]
            weight[here] += 1
    return np.divide(total, weight, out=total, where=weight > 0)
