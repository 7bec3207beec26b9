"""The known layouts, each with what tells that a file has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rehearsal_kit.data.scans.description import ScanDescription
from rehearsal_kit.data.scans.layouts import cxi, nanomax
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan_file import ScanFile


@dataclass(frozen=True)
class Layout:
    """One way to lay out a scan in files."""

    mark: str
    """What a file of it has, in words for whoever has a file of none."""
    recognises: Callable[[ScanFile], bool]
    describe: Callable[[ScanFile, ScanReading], ScanDescription]


LAYOUTS: Mapping[str, Layout] = {
    "cxi": Layout("cxi_version at its root", cxi.recognises, cxi.describe),
    "nanomax": Layout("/entry/measurement/pseudo/x", nanomax.recognises, nanomax.describe),
}
"""Layouts by name; the first that recognises a file reads it."""
