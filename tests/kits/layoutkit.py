"""A small scan whose answers are known, for writers of layouts, and the comparison with what is read again.

The detector is odd-sized and not square, with a gap between modules, a dead pixel and a hot one; the beam
does not hit its middle, and the positions are no raster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan import Scan

ROWS, COLUMNS = 37, 52
BEAM = (17, 29)
"""Row and column of the pixel that begins at the centre of the beam: of the square around it, pixel (8,
8)."""
SIDE = 16
GAP = slice(33, 35)
"""Columns between two modules, which hold no counts; they lie in the square."""
HOT, DEAD = (5, 40), (20, 25)
HC = 1.23984198433e-6


@dataclass(frozen=True)
class Truth:
    """What was measured."""

    counts: np.ndarray
    """Counts (frame, row, column), uint16, of all pixels as if none were broken."""
    positions_m: np.ndarray
    """Displacement of the probe over the object (frame, 2), row and column."""
    energy_ev: float = 8_000.0
    distance_m: float = 1.5
    detector_pixel_m: float = 75e-6

    @property
    def bad(self) -> np.ndarray:
        """Pixels (row, column) in which the detector cannot be trusted."""
        bad = np.zeros((ROWS, COLUMNS), bool)
        bad[:, GAP] = True
        bad[HOT] = bad[DEAD] = True
        return bad

    @property
    def object_pixel_m(self) -> float:
        """Of the object that frames of the square around the beam belong to."""
        return HC / self.energy_ev * self.distance_m / (SIDE * self.detector_pixel_m)

    def stored(self, *, gap: int = 0) -> np.ndarray:
        """The counts as the detector wrote them. gap: what it writes where it cannot count."""
        counts = self.counts.astype(np.int64)
        counts[:, :, GAP] = gap
        counts[:, *DEAD] = 0
        counts[:, *HOT] = 3_000
        return counts


def truth(frames: int = 12, *, seed: int = 0) -> Truth:
    """A scan of so many frames: a beam of 13 x 13 pixels with speckles, dark outside of it."""
    random = np.random.default_rng(seed)
    rows, columns = np.ogrid[:ROWS, :COLUMNS]
    # Symmetric about the corner between pixels at which the centre of the beam lies.
    lit = (np.abs(rows + 0.5 - BEAM[0]) < 7) & (np.abs(columns + 0.5 - BEAM[1]) < 7)
    counts = random.poisson(200 * lit, (frames, ROWS, COLUMNS)).astype(np.uint16)
    positions = random.uniform(-2e-6, 2e-6, (frames, 2)).round(9)
    return Truth(counts, positions)


def require_read(path: Path, wrote: Truth, *, reading: ScanReading | None = None, **known: bool) -> Scan:
    """The scan in a file, which tells what was measured.

    known: geometry, centre, mask and hot, each False where the layout does not hold it, so that it is
    estimated or told by the reading.
    """
    reading = reading or ScanReading(crop=SIDE)
    scan = open_scan(path, reading=reading)
    assert len(scan) == len(wrote.counts)
    assert scan.frame_shape == (SIDE, SIDE)
    if known.get("geometry", True):
        assert scan.energy_ev == pytest.approx(wrote.energy_ev, rel=1e-6)
        assert scan.distance_m == pytest.approx(wrote.distance_m, rel=1e-6)
        assert scan.detector_pixel_m == pytest.approx(wrote.detector_pixel_m, rel=1e-6)
        assert scan.object_pixel_m == pytest.approx(wrote.object_pixel_m, rel=1e-6)
    off = 1e-9 if known.get("centre", True) else 0.5
    assert scan.centre_px == pytest.approx(BEAM, abs=off)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-12)
    assert scan.positions_px.min() == pytest.approx(SIDE / 2)
    square = (slice(BEAM[0] - 8, BEAM[0] + 8), slice(BEAM[1] - 8, BEAM[1] + 8))
    good = ~wrote.bad[square]
    # A gap that is dark as well as its neighbourhood may count as good where no mask names it: it is zero.
    if known.get("mask", True):
        np.testing.assert_array_equal(scan.good_pixels, good)
    frames = scan.frames(range(len(scan)))
    np.testing.assert_array_equal(frames[:, good], wrote.counts[:, *square][:, good])
    assert (frames[:, wrote.counts[:, *square].any(axis=0)] > 0).all()  # what is bad was filled
    return scan
