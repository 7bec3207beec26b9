"""What makes a scan of what a file tells: its bad pixels, its beam, what is cut out, where patches lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Mask, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.beam import beam_centre, is_in_the_middle, window_around
from rehearsal_kit.data.scans.frames.broken_pixels import dead_pixels, hot_pixels
from rehearsal_kit.data.scans.frames.corrections import Corrections
from rehearsal_kit.data.scans.frames.filling import Filling
from rehearsal_kit.data.scans.frames.markers import AmbiguousMarkerError, constant_markers, markers_in
from rehearsal_kit.data.scans.frames.orientation import followed_by
from rehearsal_kit.data.scans.frames.raw_frames import RawFrames, Window
from rehearsal_kit.data.scans.geometry import (
    EV_TIMES_M,
    LARGEST_PIXEL_M,
    SMALLEST_PIXEL_M,
    object_pixel_m,
    side_for,
)
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan import Floats, Scan

SAMPLE = 16
"""Frames, spread over the whole scan, in which bad pixels and the beam are looked for."""
SAMPLE_BYTES = 2**28
"""Fewer where they are larger than this together, but two."""
LOWEST_EV, HIGHEST_EV = 1.24, 1.24e6
"""Photons whose wavelength is 1 µm and 1 pm."""


def finished(found: ScanDescription, file: ScanFile, reading: ScanReading) -> Scan:
    """The scan that was described: its bad pixels known, cut around its beam, placed over its object.

    file: the scan's own, open.

    Raises:
        ScanError: values that may be markers or counts, a beam that is not found where it has to be, or
            geometry that is impossible.
    """
    found = _told(found, reading)
    sample = Corrections(negative=found.negative).unwrapped(_sample(found.counts, file))
    bad = _bad_pixels(found, sample, file.path)
    centre, window = _window(found, reading, file.path, sample=sample, bad=bad)
    turned = found.counts.orientation
    if reading.orientation is not None:
        turned = followed_by(turned, reading.orientation)
    counts = replace(found.counts, window=window, orientation=turned)
    energy, step = _object_pixel(found, file.path, counts.shape)
    positions, translations = _placed(found, file.path, shape=counts.shape, step=step)
    image = counts.placed
    return Scan(
        path=file.path,
        layout=found.layout,
        counts=counts,
        corrections=Corrections(
            amplitude=found.amplitude,
            negative=found.negative,
            dark=None if found.dark is None else image(found.dark),
            flat=None if found.flat is None else image(found.flat),
            monitor=None if found.monitor is None else found.monitor / np.median(found.monitor),
        ),
        object_place=found.object,
        no_object=found.no_object,
        positions_px=positions,
        translations_m=translations,
        bad_pixels=np.flatnonzero(image(bad)),
        energy_ev=energy,
        distance_m=found.distance_m,
        detector_pixel_m=found.detector_pixel_m,
        object_pixel_m=step,
        centre_px=centre,
        simulated=found.simulated,
        others=tuple(file.others),
        roots=tuple(map(str, reading.roots)),
        left_out=found.left_out,
        found=found.found,
    )


def _told(found: ScanDescription, reading: ScanReading) -> ScanDescription:
    """The same with what a person says, which counts more than what a file does."""
    told = {
        name: value
        for name in ("energy_ev", "distance_m", "detector_pixel_m", "object_pixel_m")
        if (value := getattr(reading, name)) is not None
    }
    if reading.energy_ev is not None:
        told["wavelength_m"] = None
    if reading.centre is not None:
        told["centre_px"] = reading.centre
    return (
        replace(found, found={**found.found, **dict.fromkeys(told, "told by you")}, **told) if told else found
    )


def _sample(counts: RawFrames, file: ScanFile) -> NDArray[Any]:
    """Some frames as stored (frame, row, column), without those that are damaged: those are told when
    needed."""
    stored = replace(counts, corner=False, window=None, orientation=0)
    each = stored.stored_shape[0] * stored.stored_shape[1] * stored.dtype.itemsize
    count = max(2, min(SAMPLE, SAMPLE_BYTES // (each or 1)))
    frames = []
    for number in np.unique(np.linspace(0, len(counts) - 1, count).round().astype(int)):
        try:
            frames.append(stored.read(file, int(number), int(number) + 1)[0])
        except ScanError:
            continue
    return np.stack(frames) if frames else np.zeros((0, *stored.stored_shape), stored.dtype)


def _bad_pixels(found: ScanDescription, sample: NDArray[Any], path: Path) -> Mask:
    """Pixels (row, column) as stored that a mask marks, or that are seen to be broken in a sample."""
    bad = np.zeros(found.counts.stored_shape, bool) if found.bad is None else found.bad.copy()
    if found.flat is not None:
        bad |= ~(found.flat > 0)
    if not len(sample):
        return bad
    if found.counts.corner:  # else what lies across the edge of a frame would be taken for a neighbour
        centred = np.fft.fftshift(sample, axes=(-2, -1))
        seen = _seen_to_be_bad(found, centred, path, bad=np.fft.fftshift(bad))
        return np.fft.ifftshift(seen)
    return _seen_to_be_bad(found, sample, path, bad=bad)


def _seen_to_be_bad(found: ScanDescription, sample: NDArray[Any], path: Path, *, bad: Mask) -> Mask:
    """Bad pixels with those that a sample shows to be broken; both with DC in the centre."""
    if found.gap is not None and sample.any():
        bad |= (sample[sample.any(axis=(1, 2))] == found.gap).all(axis=0)
    try:
        bad = bad | constant_markers(sample, ~bad)
    except AmbiguousMarkerError as error:
        raise ScanError(
            f"{path}: {found.counts.where} holds {error} in every frame, the largest number of "
            f"{sample.dtype}, and it cannot be told whether that marks a bad pixel or a full one; write a "
            "mask of the bad pixels into the file, or store the counts in a wider type."
        ) from error
    if bad.all():
        raise ScanError(f"{path}: {found.counts.where} holds a marker in every good pixel of every frame.")
    counts = _counted(found, sample, bad)
    bad |= dead_pixels(counts, ~bad)
    bad |= hot_pixels(counts, ~bad)
    return bad


def _counted(found: ScanDescription, sample: NDArray[Any], bad: Mask) -> NDArray[np.float32]:
    """A sample as counts, nothing where a frame has a marker."""
    counts = sample.astype(np.float32)
    Corrections(amplitude=found.amplitude, negative=found.negative).make_counts(counts)
    marked = markers_in(sample, ~bad)
    if marked is not None:
        counts[marked] = 0
    counts[~np.isfinite(counts)] = 0
    return counts


def _window(
    found: ScanDescription, reading: ScanReading, path: Path, *, sample: NDArray[Any], bad: Mask
) -> tuple[tuple[float, float] | None, Window | None]:
    """Where the beam hits, where that has to be known, and the square to cut out of each frame, if any."""
    shape, centre = found.counts.stored_shape, found.centre_px
    side = reading.crop or _reconstructed_side(found)
    if shape[0] == shape[1] and (side == shape[0] or (side is None and centre is None and found.object)):
        return centre, None  # the frames are those that the object was reconstructed from
    if found.counts.corner:
        centre = (shape[0] // 2, shape[1] // 2)
    elif centre is None:
        centre = _seen_beam(found, sample, bad)
    if centre is None:  # no beam in any frame that was looked at: it says so when frames are needed
        centre = (shape[0] / 2, shape[1] / 2)
    if side is None and is_in_the_middle(centre, shape):
        return centre, None
    return centre, window_around(path, centre, shape, side=side)


def _reconstructed_side(found: ScanDescription) -> int | None:
    """Pixels of the square that the reconstruction was made from, as far as the file tells."""
    place = found.object
    if place is None:
        return None
    geometry = _geometry(found)
    if place.probe_side is not None or place.pixel_m is None or geometry is None:
        return place.probe_side
    side = side_for(place.pixel_m, geometry)
    return side if side <= min(found.counts.stored_shape) else None


def _seen_beam(found: ScanDescription, sample: NDArray[Any], bad: Mask) -> tuple[float, float] | None:
    if not len(sample):
        return None
    mean = _counted(found, sample, bad).mean(axis=0)[None]
    Filling(~bad).fill(mean)
    return beam_centre(mean[0])


def _wavelength_m(found: ScanDescription) -> float | None:
    if found.wavelength_m is not None:
        return found.wavelength_m
    return None if found.energy_ev is None else EV_TIMES_M / found.energy_ev


def _geometry(found: ScanDescription) -> tuple[float, float, float] | None:
    """Wavelength, distance and side of a pixel of the detector, in m; None where one of them is not known."""
    wavelength = _wavelength_m(found)
    if wavelength is None or found.distance_m is None or found.detector_pixel_m is None:
        return None
    return wavelength, found.distance_m, found.detector_pixel_m


def _object_pixel(
    found: ScanDescription, path: Path, shape: tuple[int, int]
) -> tuple[float | None, float | None]:
    """Energy in eV, and the side of a pixel of the object in m; None where they are not known."""
    wavelength = _wavelength_m(found)
    energy = found.energy_ev
    if energy is None and wavelength is not None:
        energy = EV_TIMES_M / wavelength
    if energy is not None and found.wavelength_m is None and not LOWEST_EV <= energy <= HIGHEST_EV:
        raise ScanError(
            f"{path}: the photon energy is {energy:g} eV, outside {LOWEST_EV:g} eV to {HIGHEST_EV:g} eV; "
            f"check its unit (found: {found.found.get('energy', 'nobody says where')}), or give "
            "ScanReading(energy_ev=...)."
        )
    side = None
    if (geometry := _geometry(found)) is not None:
        side = object_pixel_m(path, geometry, frame_shape=shape)
    elif found.object_pixel_m is not None:
        side = _of_part(found, path, shape)
    place = found.object
    return energy, side if place is None or place.pixel_m is None else place.pixel_m


def _of_part(found: ScanDescription, path: Path, shape: tuple[int, int]) -> float:
    """The stated side of a pixel of the object, for frames of which only a part is used."""
    rows, columns = found.counts.stored_shape
    stated = found.object_pixel_m
    if rows != columns or stated is None or not SMALLEST_PIXEL_M <= stated <= LARGEST_PIXEL_M:
        raise ScanError(
            f"{path}: an object pixel of {stated} m is stated for frames of {rows} x {columns} pixels; it "
            "must be 0.01 nm to 10 µm, and frames have to be square for it. Check its unit, or give "
            "ScanReading(energy_ev=..., distance_m=..., detector_pixel_m=...)."
        )
    return stated * rows / shape[0]


def _placed(
    found: ScanDescription, path: Path, *, shape: tuple[int, int], step: float | None
) -> tuple[Floats, Floats | None]:
    """Centres of the patches (frame, 2) in pixels of the object, and displacements in m where known."""
    values, in_metres = found.positions.values, found.positions.unit == "m"
    if in_metres and step is None:
        raise ScanError(
            f"{path}: positions are in metres, but energy {found.energy_ev} eV, distance {found.distance_m} "
            f"m and detector pixel {found.detector_pixel_m} m do not give an object pixel; write them into "
            "the file, or give ScanReading(energy_ev=..., distance_m=..., detector_pixel_m=...), or "
            "object_pixel_m=... alone."
        )
    scale = step if in_metres and step is not None else 1.0
    # No object to lie in: the first patch begins at the corner.
    corner = values.min(axis=0) - np.array(shape) / 2 * scale if found.object is None else found.object.origin
    return (values - corner) / scale, values if in_metres else None
