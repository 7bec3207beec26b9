"""A label: the object that a scan was taken of, as phase retrieval found it, with all that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError

Wave = NDArray[np.complex64]
Floats = NDArray[np.float64]

COVERED = 0.03
"""Where the coverage is less than this the object is not known."""


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """Where a label comes from."""

    library: str
    """Name of the package that found it, for example "cdtools-py"."""
    version: str
    """Version of that package."""
    settings: Mapping[str, Any]
    """Plain values: what it was told."""
    scan: str
    """Name of the scan's file."""
    digest: str
    """SHA-256 of the counts, the good pixels and the positions that it was made from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Label:
    """The object under a scan, its phase without constant and ramp and of median amplitude 1 where covered.

    ScanError unless shapes and dtypes fit together, all values are finite, and every patch lies inside.
    """

    object: Wave = field(repr=False)
    """(row, column)."""
    origin_px: tuple[float, float]
    """Where the corner of the object lies, row and column, in the pixels in which the scan has its positions:
    a patch whose centre the scan places at `p` has it at `p - origin_px` in `object`."""
    pixel_m: float | None
    """Side of a pixel of the object; None where the geometry is unknown."""
    probe: Wave = field(repr=False)
    """The beam (mode, row, column): the first mode is the strongest. Its intensity is in counts."""
    coverage: NDArray[np.float32] = field(repr=False)
    """Intensity of the beam that each pixel of the object has seen in all (row, column); the largest is 1."""
    positions_px: Floats = field(repr=False)
    """Centre of each patch (frame, 2), row and column, in pixels of `object`; corrected if asked."""
    errors: tuple[float, ...]
    """Relative Fourier amplitude error of each epoch, see `phase_retrieval`."""
    source: LabelSource

    def __post_init__(self) -> None:
        shapes_fit = (
            self.object.ndim == 2
            and self.probe.ndim == 3
            and self.coverage.shape == self.object.shape
            and self.positions_px.ndim == 2
            and self.positions_px.shape[1] == 2
        )
        arrays: tuple[NDArray[Any], ...] = (self.object, self.probe, self.coverage, self.positions_px)
        dtypes = (np.complex64, np.complex64, np.float32, np.float64)
        if not shapes_fit or any(each.dtype != dtype for each, dtype in zip(arrays, dtypes, strict=True)):
            found = ", ".join(f"{each.dtype} {each.shape}" for each in arrays)
            raise ScanError(
                f"{self.source.scan}: object, probe, coverage and positions of its label are {found}; they "
                "must be complex64 (row, column), complex64 (mode, row, column), float32 as the object, "
                "and float64 (frame, 2)."
            )
        if not all(np.isfinite(each).all() for each in (*arrays, np.array([*self.origin_px, *self.errors]))):
            raise ScanError(f"{self.source.scan}: its label holds NaN or infinite values; retrieve it anew.")
        corners = self.positions_px - np.array(self.probe.shape[1:]) / 2
        if (corners < -0.5).any() or (
            corners + self.probe.shape[1:] > np.array(self.object.shape) + 0.5
        ).any():
            raise ScanError(
                f"{self.source.scan}: patches of its label begin at {corners.min(axis=0)} to "
                f"{corners.max(axis=0)} and leave the object of {self.object.shape}."
            )

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Where the object is known (row, column)."""
        known: NDArray[np.bool_] = self.coverage >= COVERED
        return known
