"""Which layout a file has, and opening it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py

from rehearsal_kit.errors import ScanError
from rehearsal_kit.scans import cxi
from rehearsal_kit.scans.hdf5 import opened
from rehearsal_kit.scans.scan import Scan


@dataclass(frozen=True)
class _Layout:
    recognises: Callable[[h5py.File], bool]
    describe: Callable[[h5py.File], Scan]


LAYOUTS: Mapping[str, _Layout] = {"cxi": _Layout(cxi.recognises, cxi.describe)}
"""By name; the first that recognises a file reads it."""


def open_scan(path: str | Path, *, layout: str | None = None) -> Scan:
    """The scan in a file; reads metadata and positions, no frames.

    Args:
        path: an HDF5 file.
        layout: "cxi", or None to recognise it.

    Raises:
        ScanError: no such file, not HDF5, truncated, no known layout, or a dataset that is missing, of the
            wrong shape or outside the file.
    """
    known = ", ".join(LAYOUTS)
    if layout is not None and layout not in LAYOUTS:
        raise ScanError(f"layout {layout!r} is unknown; known are: {known}.")
    with opened(Path(path)) as file:
        if layout is not None:
            return LAYOUTS[layout].describe(file)
        for candidate in LAYOUTS.values():
            if candidate.recognises(file):
                return candidate.describe(file)
    raise ScanError(
        f"{path}: is HDF5 of no known layout (known: {known}, which has cxi_version at its root). Convert "
        "it, or pass layout= if it is one of these without its mark."
    )
