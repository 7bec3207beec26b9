"""How large a pixel of the object is, from where the detector stands; for every layout of scans."""

from __future__ import annotations

from pathlib import Path

from rehearsal_kit.base.errors import ScanError

EV_TIMES_M = 1.23984198433e-6
"""Photon energy times wavelength."""


def object_pixel_m(
    path: Path, geometry: tuple[float, float, float], *, frame_shape: tuple[int, int]
) -> float:
    """Side of a pixel of the object in m: wavelength times distance over the side of the frame.

    path: of the scan, for errors. geometry: photon energy in eV, distance of the detector and side of one of
    its pixels in m.

    Raises:
        ScanError: frames that are not square, or a side that no object has: a unit is wrong.
    """
    energy, distance, pixel = geometry
    if frame_shape[0] != frame_shape[1]:
        raise ScanError(
            f"{path}: frames are {frame_shape[0]} x {frame_shape[1]} pixels, which makes the pixels of the "
            "object oblong; crop them to a square around the beam."
        )
    side = EV_TIMES_M / energy * distance / (frame_shape[0] * pixel)
    if not 1e-11 <= side <= 1e-5:
        raise ScanError(
            f"{path}: energy {energy:g} eV, distance {distance:g} m and pixel {pixel:g} m give an object "
            f"pixel of {side:g} m, outside 0.01 nm to 10 µm; check their units."
        )
    return side
