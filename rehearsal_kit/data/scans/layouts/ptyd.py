"""The layout "ptyd": data that PtyPy has prepared (its documentation, *Ptyd file format*).

Chunks of frames with positions in metres, row and column, of the probe over the object; the energy in keV. A
weight of zero marks a pixel that does not count. Chunks may be links to files of their own (save="link").
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, Mask, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import Dataset, ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS, require_positive
from rehearsal_kit.data.scans.reading import ScanReading

CHUNKS, META = "/chunks", "/meta"
LOOKED_AT = 16
"""Frames of each chunk, spread over it, whose weights are read: weights are as large as the frames."""


def recognises(file: ScanFile) -> bool:
    """Whether the file has chunks beside what PtyPy says of them."""
    return bool(file.names(CHUNKS)) and file.first(META, "/info") is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    if file.text(f"{META}/propagation") == "nearfield":
        raise ScanError(
            f"{file.path}: {META}/propagation is nearfield; only scans in the far field are read."
        )
    chunks = [f"{CHUNKS}/{name}" for name in file.names(CHUNKS)]
    if not chunks:
        raise ScanError(f"{file.path}: there are no chunks below {CHUNKS}.")
    frames = frames_at(file, *[f"{chunk}/data" for chunk in chunks])
    counts = [block.count for block in frames.blocks]
    positions = [
        _positions(file, f"{chunk}/positions", count) for chunk, count in zip(chunks, counts, strict=True)
    ]
    bad = [_bad_pixels(file, chunk, frames.stored_shape) for chunk in chunks]
    masks = [each for each in bad if each is not None]
    centre, pixel = _numbers(file, f"{META}/center"), _numbers(file, f"{META}/psize")
    if pixel is not None and np.ptp(pixel) > 1e-3 * pixel[0]:
        raise ScanError(f"{file.path}: {META}/psize is {pixel}; only square pixels are read.")
    found = {
        "frames": f"{CHUNKS}/*/data, {len(chunks)} datasets",
        "positions": f"{CHUNKS}/*/positions, row and column, in m",
        "mask": f"{CHUNKS}/*/weights, 1 is good" if masks else None,
        "energy": file.first(f"{META}/energy"),
        "distance": file.first(f"{META}/distance"),
        "detector pixel": file.first(f"{META}/psize"),
        "beam": file.first(f"{META}/center"),
    }
    return paired(
        ScanDescription(
            layout="ptyd",
            counts=frames,
            positions=Positions(values=np.concatenate(positions), unit="m"),
            bad=np.logical_or.reduce(masks) if masks else None,
            energy_ev=_above_zero(file, f"{META}/energy", ENERGIES["keV"]),
            distance_m=_above_zero(file, f"{META}/distance", LENGTHS["m"]),
            detector_pixel_m=None
            if pixel is None
            else require_positive(pixel[0], f"{file.path}: {META}/psize"),
            centre_px=None if centre is None or len(centre) != 2 else (centre[0], centre[1]),
            found={label: where for label, where in found.items() if where is not None},
        ),
        file,
    )


def _positions(file: ScanFile, at: str, frames: int) -> Floats:
    values: Floats = file.values(at).astype(np.float64)
    if values.shape != (frames, 2):
        raise ScanError(
            f"{file.path}: {at} is of shape {values.shape}; it must be ({frames}, 2), row and column of each "
            "frame of its chunk."
        )
    return values


def _bad_pixels(file: ScanFile, chunk: str, shape: tuple[int, int]) -> Mask | None:
    """Pixels (row, column) of which any frame of a chunk has no weight; None where it has no weights."""
    at = f"{chunk}/weights"
    if file.find(at) is None:
        return None
    weights: Dataset = file.dataset(at)
    if not weights.size:
        return None
    if weights.shape[-2:] != shape or weights.ndim not in (2, 3) or weights.dtype.kind not in "biuf":
        raise ScanError(
            f"{file.path}: {at} is {weights.dtype} of shape {weights.shape}; it must be weights of "
            f"frames of {shape}."
        )
    if weights.ndim == 2:
        alone: Mask = np.asarray(weights[()]) == 0
        return alone
    numbers = np.unique(np.linspace(0, len(weights) - 1, LOOKED_AT).round().astype(int))
    bad: Mask = np.logical_or.reduce([np.asarray(weights[int(number)]) == 0 for number in numbers])
    return bad


def _numbers(file: ScanFile, at: str) -> list[float] | None:
    """Numbers that PtyPy wrote; None where it wrote none, or a word such as None or fftshift."""
    if file.find(at) is None or file.dataset(at).dtype.kind not in "iuf" or not file.dataset(at).size:
        return None
    return [float(value) for value in file.values(at).reshape(-1)]


def _above_zero(file: ScanFile, at: str, factor: float) -> float | None:
    found = _numbers(file, at)
    return None if found is None else require_positive(found[0], f"{file.path}: {at}") * factor
