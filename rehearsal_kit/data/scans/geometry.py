"""How large a pixel of the object is, from where the detector stands; for every layout of scans."""

from __future__ import annotations

from pathlib import Path

from rehearsal_kit.base.errors import ScanError

EV_TIMES_M = 1.23984198433e-6
"""Photon energy times wavelength."""
SMALLEST_PIXEL_M, LARGEST_PIXEL_M = 1e-11, 1e-5
"""Pixels of an object that somebody may have."""


def object_pixel_m(
    path: Path, geometry: tuple[float, float, float], *, frame_shape: tuple[int, int]
) -> float:
    """Side of a pixel of the object in m: wavelength times distance over the side of the frame.

    path: of the scan, for errors. geometry: wavelength, distance of the detector and side of one of its
    pixels, all in m. frame_shape: rows and columns, a square.

    Raises:
        ScanError: a wavelength or a side that nothing has: a unit is wrong.
    """
    wavelength, distance, pixel = geometry
    if not 1e-13 <= wavelength <= 1e-6:
        raise ScanError(
            f"{path}: the wavelength is {wavelength:g} m, a photon energy of {EV_TIMES_M / wavelength:g} eV, "
            "outside 0.1 pm to 1 µm; check its unit."
        )
    side = wavelength * distance / (frame_shape[0] * pixel)
    if not SMALLEST_PIXEL_M <= side <= LARGEST_PIXEL_M:
        raise ScanError(
            f"{path}: wavelength {wavelength:g} m, distance {distance:g} m and pixel {pixel:g} m give an "
            f"object pixel of {side:g} m, outside 0.01 nm to 10 µm; check their units."
        )
    return side


def side_for(pixel_m: float, geometry: tuple[float, float, float]) -> int:
    """Detector pixels of the square frame whose object has pixels of this side; geometry as above."""
    wavelength, distance, detector_pixel = geometry
    return round(wavelength * distance / (pixel_m * detector_pixel))
