"""One picture of a scan: the mean frame, and where the probe was over the object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.reports.pictures import colours, png_of

SIDE = 480
"""Pixels of a side of each of the two parts."""
MARGIN = 12
POSITION = (230, 60, 40)
BAD = (60, 120, 255)
"""Bad pixels, which were filled."""


def scan_picture(
    mean: NDArray[np.float32],
    bad: NDArray[np.bool_],
    positions_px: NDArray[np.float64],
    *,
    image: NDArray[np.complex64] | None = None,
) -> bytes:
    """A PNG: the mean frame on a logarithmic scale, bad pixels blue; positions red over the phase of the
    object.

    mean: (row, column). bad: pixels of it. positions_px: centres of the patches (frame, 2), in pixels of the
    object. image: the object (row, column); None: there is none, and positions lie on nothing.
    """
    frame = _frame(mean, bad)
    over = _positions(positions_px, image)
    gap = np.full((SIDE, MARGIN, 3), 255, np.uint8)
    return png_of(np.concatenate([frame, gap, over], axis=1))


def _frame(mean: NDArray[np.float32], bad: NDArray[np.bool_]) -> NDArray[np.uint8]:
    logs = np.log1p(np.maximum(mean, 0))
    picture = _coloured(logs / (logs.max() or 1), "dark")
    picture[bad] = BAD
    return _scaled(picture)


def _positions(positions: NDArray[np.float64], image: NDArray[np.complex64] | None) -> NDArray[np.uint8]:
    if image is None:
        low, high = positions.min(axis=0), positions.max(axis=0)
        margin = 0.05 * max(high.max() - low.min(), 1.0)
        corner, extent = low - margin, max((high - low).max() + 2 * margin, 1.0)
        picture = np.full((SIDE, SIDE, 3), 235, np.uint8)
    else:
        corner, extent = np.zeros(2), float(max(image.shape))
        picture = _scaled(_coloured((np.angle(image) + np.pi) / (2 * np.pi), "grey"))
    places = ((positions - corner) / extent * SIDE).astype(int)
    for row, column in places[((places >= 1) & (places < SIDE - 1)).all(axis=1)]:
        picture[row - 1 : row + 2, column - 1 : column + 2] = POSITION
    return picture


def _coloured(values: NDArray[np.floating], name: str) -> NDArray[np.uint8]:
    table = np.frombuffer(colours(name), np.uint8).reshape(256, 4)[:, :3]
    numbers = np.clip(np.nan_to_num(values) * 254 + 1, 1, 255).astype(np.uint8)
    found: NDArray[np.uint8] = table[numbers].copy()
    return found


def _scaled(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture with its longer side as long as the part has room, in the middle of white."""
    rows, columns = picture.shape[:2]
    factor = SIDE / max(rows, columns)
    chosen = [
        np.minimum((np.arange(max(1, round(side * factor))) / factor).astype(int), side - 1)
        for side in (rows, columns)
    ]
    part = picture[np.ix_(*chosen)]
    room = np.full((SIDE, SIDE, 3), 255, np.uint8)
    room[: part.shape[0], : part.shape[1]] = part[:SIDE, :SIDE]
    return room
