"""Which layout a file has, opening it, and finding the pixels that its detector has marked in its counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans import cxi
from rehearsal_kit.data.scans.hdf5 import dataset_of, opened
from rehearsal_kit.data.scans.markers import AmbiguousMarkerError, constant_markers
from rehearsal_kit.data.scans.scan import Scan


@dataclass(frozen=True)
class _Layout:
    mark: str
    """What a file of it has, in words for whoever has a file of none."""
    recognises: Callable[[h5py.File], bool]
    describe: Callable[[h5py.File], Scan]


LAYOUTS: Mapping[str, _Layout] = {
    "cxi": _Layout("cxi_version at its root", cxi.recognises, cxi.describe),
}
"""Layouts by name; the first that recognises a file reads it."""


SAMPLE = 16
"""Frames, spread over the whole scan, in which markers are looked for."""
SAMPLE_BYTES = 2**28
"""Fewer where they are larger than this together, but two."""


def open_scan(path: str | Path, *, layout: str | None = None) -> Scan:
    """The scan in a file; reads metadata, positions and a few frames.

    Pixels that hold what detectors write where they have no count, in all of these frames, are bad as those
    are that the mask of the file marks.

    Args:
        path: an HDF5 file.
        layout: one of {layouts}, or None to recognise it.

    Raises:
        NotYetError: no such file, or one that its writer has not finished.
        ScanError: not HDF5, no known layout, a dataset that is missing, of the wrong shape or outside the
            file, or values that may be markers or counts.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ScanError(f"layout {layout!r} is unknown; known are: {', '.join(LAYOUTS)}.")
    with opened(Path(path)) as file:
        return scan_in(file, layout=layout)


open_scan.__doc__ = (open_scan.__doc__ or "").replace("{layouts}", ", ".join(f'"{name}"' for name in LAYOUTS))


def scan_in(file: h5py.File, *, layout: str | None = None) -> Scan:
    """The scan in a file that is open already, as `open_scan` describes it; ScanError if there is none.

    layout: one of `LAYOUTS`, or None to recognise it.
    """
    candidates = LAYOUTS.values() if layout is None else [LAYOUTS[layout]]
    for candidate in candidates:
        if layout is not None or candidate.recognises(file):
            return _without_markers(candidate.describe(file), file)
    known = "; ".join(f"{name}, which has {each.mark}" for name, each in LAYOUTS.items())
    raise ScanError(
        f"{file.filename}: is HDF5 of no known layout (known: {known}). Convert it, or pass layout= if it is "
        "one of these without its mark."
    )


def _without_markers(scan: Scan, file: h5py.File) -> Scan:
    dataset = dataset_of(file, scan.frames_at)
    count = max(2, min(SAMPLE, SAMPLE_BYTES // (dataset.nbytes // len(scan) or 1)))
    frames = []
    for number in np.unique(np.linspace(0, len(scan) - 1, count).round().astype(int)):
        try:
            frames.append(dataset[number])
        except OSError:  # what is damaged is told, with its number, when it is needed
            continue
    if not frames:
        return scan
    good = scan.good_pixels
    try:
        marked = constant_markers(np.stack(frames), good)
    except AmbiguousMarkerError as error:
        raise ScanError(
            f"{scan.path}: {scan.frames_at} holds {error} in every frame, the largest number of "
            f"{dataset.dtype}, and it cannot be told whether that marks a bad pixel or a full one; write a "
            "mask of the bad pixels into the file, or store the counts in a wider type."
        ) from error
    if not (good & ~marked).any():
        raise ScanError(f"{scan.path}: {scan.frames_at} holds a marker in every good pixel of every frame.")
    return replace(scan, bad_pixels=np.flatnonzero(~good | marked)) if marked.any() else scan
