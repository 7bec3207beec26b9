"""An object whose patches are known, for layouts that hold a reconstruction beside the scan of layoutkit."""

from __future__ import annotations

import numpy as np
from layoutkit import BEAM, SIDE, Truth

from rehearsal_kit.data.scans.scan import Scan, patch_corners

SHAPE = (45, 50)
"""Rows and columns of the object, more than positions and frames need."""


def square(wrote: Truth) -> np.ndarray:
    """Counts (frame, row, column) of the square around the beam, as somebody cut them out: none is broken."""
    half = SIDE // 2
    rows, columns = (slice(centre - half, centre + half) for centre in BEAM)
    return wrote.counts[:, rows, columns]


def object_image(seed: int = 1) -> np.ndarray:
    """An object complex64 (row, column), each pixel another value."""
    random = np.random.default_rng(seed)
    phase = random.uniform(-1, 1, SHAPE)
    return (random.uniform(0.5, 1.5, SHAPE) * np.exp(1j * phase)).astype(np.complex64)


def centres_px(wrote: Truth) -> np.ndarray:
    """Centres of the patches (frame, 2) in pixels of the object, whose middle is the origin of positions."""
    return wrote.positions_m / wrote.object_pixel_m + np.array(SHAPE) / 2


def require_label(scan: Scan, wrote: Truth, image: np.ndarray, *, frames: np.ndarray | None = None) -> None:
    """The object of a scan is the one that was written, and patches lie in it where they were.

    frames: the ones that the scan has; None: all.
    """
    wanted = centres_px(wrote) if frames is None else centres_px(wrote)[frames]
    np.testing.assert_array_equal(scan.object(), image)
    np.testing.assert_allclose(scan.positions_px, wanted, atol=1e-6)
    assert (patch_corners(scan.positions_px, SIDE) >= 0).all()
