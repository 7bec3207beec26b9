"""What a layout tells of a scan, in SI units, before anything is cut, filled or placed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.data.scans.frames.raw_frames import RawFrames

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Where the probe was over the object, frame by frame."""

    values: Floats = field(repr=False)
    """Displacement of the probe over the object (frame, 2), row and column, growing as those of the
    object."""
    unit: str
    """"m", or "pixel" of the object."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectPlace:
    """A reconstruction of the object, and where the scan lies in it."""

    path: Path
    """The file that holds it."""
    at: str
    shape: tuple[int, int]
    """Rows and columns."""
    origin: Floats
    """The position (2,) at which the centre of the patch is the corner of the object; in the positions'
    unit."""
    layer: int | None = None
    """Which one of its first axis, where it is (layer, row, column)."""
    pixel_m: float | None = None
    """Side of one of its pixels; None where the file does not tell: that of the far field."""
    probe_side: int | None = None
    """Rows and columns of the frames that it was reconstructed from; None where the file does not tell."""
    patches: bool = False
    """Whether the dataset holds the patch of each frame, (frame, row, column), instead of the whole
    object."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReconstructionDescription:
    """What a file tells that holds a reconstruction for frames in another one."""

    place: ObjectPlace | None
    """Where the object is, and the scan in it, in the unit of the positions."""
    no_object: str = ""
    """Why there is no object."""
    positions: Positions
    """Those that it was reconstructed with."""
    numbers: NDArray[np.int64] | None = field(default=None, repr=False)
    """The frame that each position belongs to; None: they are in the order of the frames, one for each."""
    bad: Mask | None = field(default=None, repr=False)
    """Pixels (row, column) of the frames as stored that were not trusted; None: it does not tell."""
    energy_ev: float | None = None
    """Energy of a photon; counts, as the distance does, where the scan does not tell it."""
    distance_m: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanDescription:
    """The facts that a layout finds in an open file, each as it means them."""

    layout: str
    counts: RawFrames
    positions: Positions
    object: ObjectPlace | None = None
    no_object: str = "no reconstruction: nothing to train on"
    """Why there is no object."""
    bad: Mask | None = field(default=None, repr=False)
    """Pixels (row, column) as stored that a mask marks; None: there is no mask."""
    energy_ev: float | None = None
    """Energy of a photon, or of an electron."""
    wavelength_m: float | None = None
    """Stated by itself, as for electrons; None: that of a photon of `energy_ev`."""
    distance_m: float | None = None
    """The way from the sample to the detector."""
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    """Side of a pixel of the object that whole frames belong to, where the file states that instead of where
    the detector stands."""
    centre_px: tuple[float, float] | None = None
    """Where the beam hits the detector, row and column as stored; None: the file does not tell."""
    amplitude: bool = False
    """Whether the square roots of counts are stored."""
    negative: str = "refuse"
    """What counts below zero are: "refuse" them, "zero", or "wrapped" sixteen bit numbers."""
    gap: int | None = None
    """The number that a pixel without a counter holds in all frames, where it could be a count as well."""
    dark: NDArray[np.float32] | None = field(default=None, repr=False)
    """Counts without beam (row, column) as stored, which are taken off."""
    flat: NDArray[np.float32] | None = field(default=None, repr=False)
    """What each pixel makes of one photon (row, column) as stored; counts are divided by it."""
    monitor: Floats | None = field(default=None, repr=False)
    """Photons that came in (frame,), in any unit; counts are divided by it over its median."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Frames of the files that no position belongs to, or the other way round, by what is the matter."""
    simulated: bool = False
    """Whether the counts were computed rather than measured."""
    found: Mapping[str, str] = field(default_factory=dict)
    """Where each field comes from, as people would look for it."""
