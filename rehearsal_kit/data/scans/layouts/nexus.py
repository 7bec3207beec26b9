"""What layouts of NeXus have in common: square pixels, the place of the beam, motors of a raster."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.quantities import LENGTHS, factor_of, square_side

PIXELS = {"pixel": 1.0, "pixels": 1.0, "px": 1.0}


def told_quantity(file: ScanFile, at: str, units: Mapping[str, float], *, default: str) -> float | None:
    """The number at `at` in SI units or eV; None if there is nothing, or zero.

    Zero is what detectors write of a distance or an energy that nobody told them.

    Raises:
        ScanError: an unknown unit, or a number below zero.
    """
    return None if file.number(at) == 0 else file.quantity(at, units, default=default)


def square_pixel_m(file: ScanFile, detector: str, *, default: str = "m") -> float | None:
    """Side of a pixel of the detector, whose group is named; ScanError if its pixels are no squares.

    default: the unit where the file states none.
    """
    columns = told_quantity(file, f"{detector}/x_pixel_size", LENGTHS, default=default)
    rows = told_quantity(file, f"{detector}/y_pixel_size", LENGTHS, default=default)
    if columns is None or rows is None:
        return columns if rows is None else rows
    return square_side(rows, columns, f"{file.path}: detector pixels")


def beam_centre(
    file: ScanFile, row: str, column: str, *, pixel_m: float | None = None
) -> tuple[float, float] | None:
    """Where the beam hits the detector, row and column as stored; None if it is not told, or zero and zero.

    row, column: datasets with numbers in pixels, or in a unit of length if they say so.
    pixel_m: side of a pixel.
    """
    found = []
    for at in (row, column):
        value, unit = file.number(at), file.unit(at, "pixel")
        if value is None:
            return None
        factor = factor_of(unit, {**PIXELS, **LENGTHS}, f"{file.path}: {at}")
        if unit not in PIXELS:
            if pixel_m is None:
                raise ScanError(f"{file.path}: {at} is in {unit}, but the size of a pixel is not told.")
            factor /= pixel_m
        found.append(value * factor)
    return None if found == [0, 0] else (found[0], found[1])


def lengths_of(file: ScanFile, at: str, *, default: str = "m") -> Floats:
    """The values at `at` in metres, axes of size one left out; ScanError if they are no numbers."""
    values = file.values(at).astype(np.float64)
    if values.ndim > 1:
        values = values.squeeze()
    return np.atleast_1d(values) * factor_of(file.unit(at, default), LENGTHS, f"{file.path}: {at}")


def over_raster(file: ScanFile, rows: Floats, columns: Floats, *, scan_shape: tuple[int, ...]) -> Floats:
    """Positions (frame, 2) of motors that were written down for each frame, or for each line of a raster.

    scan_shape: axes of the frames' dataset before those of a frame.

    Raises:
        ScanError: numbers of positions that do not fit the frames.
    """
    count = int(np.prod(scan_shape))
    if rows.shape == columns.shape and rows.size >= count:
        return np.stack([rows.reshape(-1), columns.reshape(-1)], axis=1)
    if rows.ndim == columns.ndim == 1 and rows.size * columns.size == count:
        # Rows are slow, as usual, unless the frames say that they are not.
        slow_columns = scan_shape == (columns.size, rows.size) and rows.size != columns.size
        mesh = np.meshgrid(rows, columns, indexing="xy" if slow_columns else "ij")
        return np.stack([axis.reshape(-1) for axis in mesh], axis=1)
    raise ScanError(
        f"{file.path}: there are positions of shapes {rows.shape} along the rows and {columns.shape} along "
        f"the columns, and frames of shape {scan_shape}; there must be a pair for each frame, or one for "
        "each line and one for each column of a raster."
    )
