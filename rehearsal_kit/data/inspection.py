"""What is seen in the file of a scan before anybody trains on it, and what would become of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.data.experience import SPLITS
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scan_tasks import ScanExperience, split_scan
from rehearsal_kit.data.scans.doors.scan_file import opened_scan
from rehearsal_kit.data.scans.frames.orientation import in_words
from rehearsal_kit.data.scans.layouts.registry import LAYOUTS
from rehearsal_kit.data.scans.opening import scan_in
from rehearsal_kit.data.scans.scan import Scan
from rehearsal_kit.record.commands import Arrived

SAMPLE = 64
"""Frames, spread over the scan, of which the mean is shown and in which beam is looked for."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that is known of a scan, in plain values that JSON keeps; lengths in m, energies in eV."""

    path: str
    others: tuple[str, ...]
    """Files that it is spread over, beside `path`."""
    layout: str
    recognised_by: str
    """What tells the layout."""
    frames: int
    stored_shape: tuple[int, int]
    """Rows and columns of a frame in the file."""
    stored_dtype: str
    frame_shape: tuple[int, int]
    """Rows and columns of a frame as it comes out."""
    window: tuple[int, int, int] | None
    """First row, first column and side of the square that is cut out; None: nothing is cut."""
    beam_px: tuple[float, float] | None
    """Where the beam hits the detector as stored; None where nobody had to know."""
    orientation: int
    bad_pixels: int
    """Bad pixels of a frame as it comes out."""
    energy_ev: float | None
    distance_m: float | None
    detector_pixel_m: float | None
    object_pixel_m: float | None
    positions_m: tuple[tuple[float, float], tuple[float, float]] | None
    """Lowest and highest row and column, displacement of the probe; None where the file has pixels only."""
    positions_px: tuple[tuple[float, float], tuple[float, float]]
    """The same in pixels of the object."""
    object_shape: tuple[int, int] | None
    no_object: str
    """Why there is no object that could be trained on; empty if there is one."""
    left_out: Mapping[str, int]
    """Frames or positions that are not used, by what is the matter."""
    samples: Mapping[str, int]
    """Frames in each split, and those in none of them; empty if the scan would be set aside."""
    set_aside: str
    """Why it would be set aside; empty if it would be trained on."""
    found: Mapping[str, str] = field(default_factory=dict)
    """Where each field comes from."""

    def plain(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people: a line for each thing, and where it comes from."""
        told = _said(self)
        width = max(len(name) for name, _, _ in told)
        return [
            f"{name.ljust(width)}  {value}" + (f"   [{where}]" if where else "")
            for name, value, where in told
        ]


def inspect_scan(
    path: str | Path, preparation: Preparation | None = None
) -> tuple[Scan, Inspection, NDArray[np.float32]]:
    """A scan, what is seen in it, and the mean of some of its frames (row, column) as they come out.

    Raises:
        NotYetError, ScanError: no scan that can be read, with the reason.
    """
    preparation = preparation or Preparation()
    with opened_scan(Path(path), preparation.scan_reading.roots) as file:
        scan = scan_in(file, preparation.scan_reading)
        numbers = np.unique(np.linspace(0, len(scan) - 1, min(SAMPLE, len(scan))).round().astype(int))
        frames = scan.frames(numbers, file=file)
        arrived = Arrived(name=Path(path).stem, path=str(path))
        experience: ScanExperience | None = None
        reason = scan.no_object if not scan.has_object else ""
        if not reason:
            try:
                experience = split_scan(scan, arrived, preparation.fitted(scan, file=file), file=file)
            except RehearsalKitError as error:
                reason = str(error)
    mean: NDArray[np.float32] = frames.mean(axis=0)
    dark = int((~frames.any(axis=(1, 2))).sum())
    left_out = dict(scan.left_out)
    if dark:
        left_out[f"without beam, of {len(frames)} that were looked at"] = dark
    samples = {}
    if experience is not None:
        samples = {split: experience.count(split) for split in SPLITS} | {"in none": experience.skipped}
    return scan, _inspected(scan, left_out, samples, reason=reason), mean


def _inspected(
    scan: Scan, left_out: Mapping[str, int], samples: Mapping[str, int], *, reason: str
) -> Inspection:
    cut = scan.counts.window
    known = LAYOUTS.get(scan.layout)
    return Inspection(
        path=str(scan.path),
        others=tuple(map(str, scan.others)),
        layout=scan.layout,
        recognised_by=known.mark if known else "you gave a mapping",
        frames=len(scan),
        stored_shape=scan.counts.stored_shape,
        stored_dtype=str(scan.counts.dtype),
        frame_shape=scan.frame_shape,
        window=None if cut is None else (cut.row, cut.column, cut.side),
        beam_px=scan.centre_px,
        orientation=scan.counts.orientation,
        bad_pixels=len(scan.bad_pixels),
        energy_ev=scan.energy_ev,
        distance_m=scan.distance_m,
        detector_pixel_m=scan.detector_pixel_m,
        object_pixel_m=scan.object_pixel_m,
        positions_m=None if scan.translations_m is None else _range(scan.translations_m),
        positions_px=_range(scan.positions_px),
        object_shape=scan.object_shape,
        no_object="" if scan.has_object else scan.no_object,
        left_out=left_out,
        samples=samples,
        set_aside=reason,
        found=dict(scan.found),
    )


def _range(positions: NDArray[np.float64]) -> tuple[tuple[float, float], tuple[float, float]]:
    low, high = positions.min(axis=0), positions.max(axis=0)
    return (float(low[0]), float(low[1])), (float(high[0]), float(high[1]))


def _said(seen: Inspection) -> list[tuple[str, str, str]]:
    """Name, value with its unit, and origin of everything that is told."""

    def quantity(value: float | None, scale: float, unit: str) -> str:
        return "unknown" if value is None else f"{value * scale:.6g} {unit}"

    found, (rows, columns) = dict(seen.found), seen.stored_shape
    lines = [
        ("file", seen.path, ""),
        *(("", other, "") for other in seen.others[:5]),
        *([("", f"and {len(seen.others) - 5} more files", "")] if len(seen.others) > 5 else []),
        ("layout", seen.layout, f"recognised by {seen.recognised_by}"),
        ("frames", f"{seen.frames} of {rows} x {columns} {seen.stored_dtype}", found.pop("frames", "")),
        ("energy", quantity(seen.energy_ev, 1e-3, "keV"), found.pop("energy", "")),
        ("distance", quantity(seen.distance_m, 1, "m"), found.pop("distance", "")),
        ("detector pixel", quantity(seen.detector_pixel_m, 1e6, "µm"), found.pop("detector pixel", "")),
        ("object pixel", quantity(seen.object_pixel_m, 1e9, "nm"), found.pop("object pixel", "")),
        ("positions", _extent(seen), found.pop("positions", "")),
        ("beam", _place(seen), ""),
        ("cut", _cut(seen), ""),
        ("orientation", in_words(seen.orientation), found.pop("orientation", "")),
        ("bad pixels", f"{seen.bad_pixels}, filled from their neighbours", found.pop("mask", "no mask")),
        ("object", _object(seen), found.pop("object", "")),
        *(("", name, where) for name, where in found.items()),
        *(("left out", f"{count} {what}", "") for what, count in seen.left_out.items()),
    ]
    if seen.set_aside:
        lines.append(("set aside", seen.set_aside, ""))
    else:
        counts = ", ".join(f"{count} {split}" for split, count in seen.samples.items())
        lines.append(("samples", counts, ""))
    return lines


def _extent(seen: Inspection) -> str:
    if seen.positions_m is not None:
        low, high = seen.positions_m
        rows, columns = ((top - bottom) * 1e6 for bottom, top in zip(low, high, strict=True))
        return f"over {rows:.4g} x {columns:.4g} µm (rows x columns)"
    low, high = seen.positions_px
    rows, columns = (top - bottom for bottom, top in zip(low, high, strict=True))
    return f"over {rows:.4g} x {columns:.4g} pixels of the object"


def _place(seen: Inspection) -> str:
    if seen.beam_px is None:
        return "in the middle of the frame"
    return f"row {seen.beam_px[0]:.1f}, column {seen.beam_px[1]:.1f}"


def _cut(seen: Inspection) -> str:
    if seen.window is None:
        return "nothing, the whole frame is used"
    row, column, side = seen.window
    return f"{side} x {side} pixels from row {row}, column {column}"


def _object(seen: Inspection) -> str:
    if seen.object_shape is None:
        return seen.no_object
    return f"{seen.object_shape[0]} x {seen.object_shape[1]} pixels"
