"""The layout "nsls2_hxn": scans of the Hard X-ray Nanoprobe of NSLS-II, as its programs write them.

Processed for reconstruction (`nsls2ptycho`): /diffamp, square roots of counts with DC at the corner, /points
in µm, /lambda_nm, /z_m, /ccd_pixel_um and /angle. Dumped from a live run (`holoptycho`): the same with /dp,
counts with DC in the centre. Raw: /entry/data/data or /diff_data/<detector>/det_images, and
/scan/scan_positions. For MATLAB: /det_data and /pos_xy.

Positions are rows (x, y) of the probe over the object, as ptychodus reads them; its programs do not agree on
signs, nor on which axis of a frame is x: `nsls2ptycho` pairs the first one with the first row of points,
which is orientation=4 here. The x of processed and raw scans is that of motors, so it is shortened by the
cosine of the angle, as those programs do; a dump has that in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import beside
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_looks import have_corner_dc, hold_whole_numbers
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.layouts.ptychoshelves import parameters
from rehearsal_kit.data.scans.quantities import LENGTHS, factor_of
from rehearsal_kit.data.scans.reading import ScanReading


@dataclass(frozen=True)
class _Variant:
    """One of the ways in which these files are laid out."""

    frames: tuple[str, ...]
    """Where frames are; the first counts."""
    positions: str
    amplitude: bool | None = False
    """Whether square roots of counts are stored; None: whole numbers are counts, and others are not known."""
    corner: bool = False
    """Whether DC lies at the corner, unless the frames show that it does not."""
    turned: bool = True
    """Whether x is that of motors beneath a sample that is turned by an angle."""


PROCESSED = _Variant(("/diffamp",), "/points", amplitude=True, corner=True)
VARIANTS = (
    PROCESSED,
    _Variant(("/dp",), "/points", turned=False),
    _Variant(("/entry/data/data", "/diff_data/*/det_images"), "/scan/scan_positions"),
    _Variant(("/det_data",), "/pos_xy", amplitude=None),
)
ENERGIES = ("/scan/energy", "/energy")
KEV, EV = (1.0, 200.0), (1e3, 2e5)
"""Numbers that are an energy in keV, and those that are one in eV."""


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames and positions where one of the programs writes them, or /dp alone."""
    if _variant(file) is not None or file.find("/diffamp") is not None:
        return True
    return (
        file.find("/dp") is not None
        and file.first("/positions", "/ppX") is None
        and beside(file, parameters(file)) is None
    )


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    variant = _variant(file) or (PROCESSED if file.find("/diffamp") is not None else VARIANTS[1])
    at = _frames_at(file, variant) or variant.frames[0]
    frames = frames_at(file, at)
    positions = _positions(file, variant)
    amplitude = variant.amplitude
    if amplitude is None:
        if not hold_whole_numbers(file, frames):
            raise ScanError(
                f"{file.path}: {at} holds numbers that are not whole, and whether they are counts or their "
                "square roots is not known; say stored=... in a mapping."
            )
        amplitude = False
    # Raw frames may have their beam near a corner of the detector, which is something else.
    corner = variant.corner and have_corner_dc(file, frames, otherwise=True)
    energy, energy_at = _energy_ev(file)
    distance_at = file.first("/z_m", "/det_dist")
    pixel_at = file.first("/ccd_pixel_um", "/scan/det_pixel_size", "/det_pixel_size")
    wavelength = file.quantity("/lambda_nm", LENGTHS, default="nm")
    found = {
        "frames": f"{at}, {'square roots of counts' if amplitude else 'counts'}, DC "
        f"{'at the corner' if corner else 'in the centre'}",
        "positions": f"{variant.positions}, rows x and y",
        "wavelength": "/lambda_nm" if wavelength is not None else None,
        "energy": energy_at,
        "distance": distance_at,
        "detector pixel": pixel_at,
    }
    if reading.orientation is None:
        found["orientation"] = "as stored; nsls2ptycho takes frames transposed, which is orientation=4"
    return paired(
        ScanDescription(
            layout="nsls2_hxn",
            counts=replace(frames, corner=corner),
            positions=Positions(values=positions, unit="m"),
            wavelength_m=wavelength,
            energy_ev=None if wavelength is not None else energy,
            distance_m=_length(file, distance_at, {"/z_m": "m", "/det_dist": "um"}),
            detector_pixel_m=_length(file, pixel_at, {}),
            amplitude=amplitude,
            found={label: where for label, where in found.items() if where is not None},
        ),
        file,
    )


def _variant(file: ScanFile) -> _Variant | None:
    """The one of which the file has both frames and positions."""
    for each in VARIANTS:
        if file.find(each.positions) is not None and _frames_at(file, each) is not None:
            return each
    return None


def _frames_at(file: ScanFile, variant: _Variant) -> str | None:
    return next((at for pattern in variant.frames for at in file.matching(pattern)), None)


def _positions(file: ScanFile, variant: _Variant) -> Floats:
    """Displacement of the probe (frame, 2), m."""
    at = variant.positions
    values = file.values(at).astype(np.float64)
    if values.ndim != 2 or values.shape[0] not in (2, 3):
        raise ScanError(f"{file.path}: {at} is of shape {values.shape}; it must be (2, frame), x and y.")
    x, y = values[-2:]  # of three rows, as MATLAB scripts write them, the first one is a number of the frame
    if variant.turned and (angle := _angle(file)):
        x = x * (abs(np.cos(angle)) if abs(angle) <= np.pi / 4 else abs(np.sin(angle)))
    return np.stack([y, x], axis=1) * factor_of(file.unit(at, "um"), LENGTHS, f"{file.path}: {at}")


def _angle(file: ScanFile) -> float:
    """How the sample is turned about the vertical axis, rad."""
    return (file.number("/angle") or 0.0) * np.pi / 180


def _length(file: ScanFile, at: str | None, units: dict[str, str]) -> float | None:
    return None if at is None else file.quantity(at, LENGTHS, default=units.get(at, "um"))


def _energy_ev(file: ScanFile) -> tuple[float | None, str | None]:
    """Photon energy, and where it was found: its unit follows from its size where the file states none."""
    at = file.first(*ENERGIES)
    value = None if at is None else file.number(at)
    if at is None or value is None:
        return None, None
    unit = file.unit(at, "keV" if KEV[0] <= value <= KEV[1] else "eV" if EV[0] <= value <= EV[1] else "")
    if unit not in ("keV", "eV"):
        raise ScanError(
            f"{file.path}: {at} is {value:g} {unit}; an energy is {KEV[0]:g} to {KEV[1]:g} in keV or "
            f"{EV[0]:g} to {EV[1]:g} in eV. Correct it, or give ScanReading(energy_ev=...)."
        )
    return value * (1e3 if unit == "keV" else 1.0), f"{at}, in {unit}"
