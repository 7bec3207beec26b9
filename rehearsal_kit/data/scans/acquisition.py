"""The arrays of one scan, before they are a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.data.scans.geometry import EV_TIMES_M
from rehearsal_kit.data.scans.scan import Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Acquisition:
    """The arrays of one scan, ready to be written. Geometry is all known or all None."""

    counts: NDArray[np.uint16] | NDArray[np.uint32]
    """uint16 or uint32 (frame, row, column), DC in the centre."""
    positions_px: Floats
    """Centre of each patch (frame, 2), row and column, in pixels of the object."""
    simulated: bool
    object: NDArray[np.complex64] | None = None
    """(row, column)."""
    probe: NDArray[np.complex64] | None = None
    """(mode, row, column)."""
    good_pixels: NDArray[np.bool_] | None = None
    """(row, column); None if all are good."""
    energy_ev: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or self.positions_px.shape != (len(self.counts), 2):
            raise SettingsError(
                f"counts are {self.counts.shape} and positions {self.positions_px.shape}; they must be "
                "(frame, row, column) and (frame, 2)."
            )
        geometry = (self.energy_ev, self.distance_m, self.detector_pixel_m)
        if None in geometry and geometry != (None, None, None):
            raise SettingsError(f"energy, distance and pixel are {geometry}; give all three or none.")

    @property
    def object_pixel_m(self) -> float | None:
        """Side of a pixel of the object; None where the geometry is unknown."""
        if self.energy_ev is None or self.distance_m is None or self.detector_pixel_m is None:
            return None
        side: int = self.counts.shape[-1]
        return EV_TIMES_M / self.energy_ev * self.distance_m / (side * self.detector_pixel_m)
