"""The frames of a scan as phase retrieval takes them, all at once, and where their patches lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.geometry import EV_TIMES_M, object_pixel_m
from rehearsal_kit.data.scans.scan import Scan

Floats = NDArray[np.float64]

LIT = 0.1
"""A frame with less than this of the median frame's counts had no beam, and is left out."""
FEWEST = 4
"""Frames without which there is nothing to retrieve."""
FARTHEST_APART = 0.5
"""Positions lie no farther from their next than this, in sides of a frame: patches have to overlap."""
LARGEST_OBJECT = 2**27
"""Pixels that an object may have: 4 GiB with its gradient and Adam's two moments."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Frames, and first row and column of their patches."""

    counts: NDArray[np.float32]
    """(frame, row, column), DC in the centre."""
    good: NDArray[np.bool_]
    """True where the detector can be trusted (row, column); what is counted elsewhere does not matter."""
    corners_px: Floats
    """First row and column of each patch (frame, 2), in pixels of the object, also between them."""

    @property
    def side(self) -> int:
        """Rows and columns of a frame."""
        return int(self.counts.shape[-1])

    @property
    def total(self) -> float:
        """All counts in good pixels."""
        return float(self.counts[:, self.good].sum(dtype=np.float64))

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        found = hashlib.sha256(repr(self.counts.shape).encode())
        for array in (self.counts, self.good, self.corners_px):
            found.update(np.ascontiguousarray(array).view(np.uint8).data)
        return found.hexdigest()

    def some(self, frames: NDArray[np.int64] | NDArray[np.bool_]) -> Measured:
        """Some of the frames."""
        return replace(self, counts=self.counts[frames], corners_px=self.corners_px[frames])

    def placed(self, border: int) -> tuple[Measured, Floats, tuple[int, int]]:
        """The same in an object that reaches beyond all patches by `border` pixels.

        Also its corner (2,), in the pixels that positions were given in, and its rows and columns.
        """
        corner = np.floor(self.corners_px.min(axis=0)) - border
        rows, columns = np.ceil(self.corners_px.max(axis=0) - corner).astype(int) + self.side + border
        return replace(self, corners_px=self.corners_px - corner), corner, (int(rows), int(columns))


def measured_in(scan: Scan) -> tuple[Measured, NDArray[np.bool_]]:
    """All frames of a scan, with patches placed as it has them, and which of them had beam (frame,).

    Raises:
        ScanError: frames that cannot be read, too few with beam, no square, positions that do not overlap or
            lie too far apart, or in pixels that are not those of the frames.
    """
    rows, columns = scan.frame_shape
    if rows != columns:
        raise ScanError(f"{scan.path}: frames are {rows} x {columns} pixels; phase retrieval needs squares.")
    _require_own_pixel(scan)
    measured = Measured(
        counts=scan.frames(np.arange(len(scan))),
        good=scan.good_pixels,
        corners_px=scan.positions_px - rows / 2,
    )
    totals = measured.counts.sum(axis=(1, 2), where=measured.good, dtype=np.float64)
    lit = (totals >= LIT * np.median(totals)) & (totals > 0)
    if lit.sum() < FEWEST:
        raise ScanError(
            f"{scan.path}: {lit.sum()} of {len(scan)} frames have beam; phase retrieval needs {FEWEST}."
        )
    _require_overlap(scan, measured.corners_px[lit])
    return measured, lit


def _require_own_pixel(scan: Scan) -> None:
    if scan.energy_ev is None or scan.distance_m is None or scan.detector_pixel_m is None:
        return
    geometry = (EV_TIMES_M / scan.energy_ev, scan.distance_m, scan.detector_pixel_m)
    own = object_pixel_m(scan.path, geometry, frame_shape=scan.frame_shape)
    if scan.object_pixel_m is not None and abs(scan.object_pixel_m / own - 1) > 0.01:
        raise ScanError(
            f"{scan.path}: has positions in pixels of {scan.object_pixel_m:g} m, as its object, but its "
            f"frames give an object pixel of {own:g} m; cut frames as that reconstruction had them."
        )


def _require_overlap(scan: Scan, corners: Floats) -> None:
    if not np.isfinite(corners).all():
        raise ScanError(
            f"{scan.path}: positions hold NaN or infinite values; phase retrieval needs them all."
        )
    nearest = float(np.median(cKDTree(corners).query(corners, 2)[0][:, 1]))
    side = scan.frame_shape[0]
    if nearest > FARTHEST_APART * side:
        raise ScanError(
            f"{scan.path}: positions lie {nearest:.1f} pixels from their next, more than half of a frame of "
            f"{side}; patches have to overlap. Check their unit."
        )
    pixels = float(np.prod(np.ptp(corners, axis=0) + side))
    if pixels > LARGEST_OBJECT:
        raise ScanError(
            f"{scan.path}: positions spread over {pixels:g} pixels; no more than {LARGEST_OBJECT} can be "
            "retrieved. Check their unit, or split the scan."
        )
