"""The known layouts, each with what tells that a file has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rehearsal_kit.data.scans.description import ReconstructionDescription, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.layouts import (
    aps_2id,
    aps_12id,
    aps_12id_processed,
    aps_26id,
    aps_cssi,
    aps_lynx,
    aps_polar,
    aps_velociprobe,
    csaxs,
    cxi,
    diamond,
    nanomax,
    nsls2_hxn,
    nsls2_product,
    nxcxi_ptycho,
    own_label,
    ptychodus_product,
    ptychodus_training,
    ptychonn,
    ptychopinn,
    ptychoshelves,
    ptyd,
    tike,
)
from rehearsal_kit.data.scans.reading import ScanReading


@dataclass(frozen=True)
class Layout:
    """One way to lay out a scan in files."""

    mark: str
    """What a file of it has, in words for whoever has a file of none."""
    recognises: Callable[[ScanFile], bool]
    describe: Callable[[ScanFile, ScanReading], ScanDescription]
    instead_of: tuple[str, ...] = ()
    """Layouts whose marks a file of this one has, too; it is meant where both are recognised."""
    reconstruction: str | None = None
    """Name of the file beside a scan that holds its reconstruction, if there is such a file; see
    `companion_name`."""


@dataclass(frozen=True)
class ReconstructionLayout:
    """One way to lay out a reconstruction in a file that holds no frames."""

    mark: str
    """What a file of it has, in words."""
    recognises: Callable[[ScanFile], bool]
    describe: Callable[[ScanFile], ReconstructionDescription]


LAYOUTS: Mapping[str, Layout] = {
    "cxi": Layout("cxi_version at its root", cxi.recognises, cxi.describe),
    "nxcxi_ptycho": Layout(
        "NXcxi_ptycho in /entry_1/definition",
        nxcxi_ptycho.recognises,
        nxcxi_ptycho.describe,
        instead_of=("cxi", "diamond"),
    ),
    "diamond": Layout(
        "/entry_1/data/data with x and y beside it",
        diamond.recognises,
        diamond.describe,
        instead_of=("cxi",),
    ),
    "nanomax": Layout("/entry/measurement/pseudo/x", nanomax.recognises, nanomax.describe),
    "aps_26id": Layout(
        "/entry/data/data and is called scan_NUMBER_NUMBER, or has its positions as .csv beside it",
        aps_26id.recognises,
        aps_26id.describe,
    ),
    "aps_velociprobe": Layout(
        "links /entry/data/data_NUMBER and detectorSpecific, as masters of Eiger detectors have",
        aps_velociprobe.recognises,
        aps_velociprobe.describe,
    ),
    "aps_velociprobe_laser": Layout(
        "the same, with y by the laser interferometer; it has to be asked for",
        lambda file: False,
        aps_velociprobe.describe_laser,
    ),
    "aps_lynx": Layout("/entry/data/eiger_4", aps_lynx.recognises, aps_lynx.describe),
    "aps_polar": Layout("a link /entry/externals/eiger", aps_polar.recognises, aps_polar.describe),
    "aps_12id": Layout(
        "one frame in /entry/data/data, monoE in its NDAttributes and a name that ends in _LINE_POINT",
        aps_12id.recognises,
        aps_12id.describe,
        instead_of=("aps_26id",),
    ),
    "aps_2id": Layout(
        "/entry/data/data and is called flySCAN_LINE or flySCAN_data_LINE",
        aps_2id.recognises,
        aps_2id.describe,
        instead_of=("aps_26id",),
    ),
    "aps_12id_processed": Layout(
        "/dp and /positions, or beam_center_YX in a master",
        aps_12id_processed.recognises,
        aps_12id_processed.describe,
    ),
    "aps_cssi": Layout("/exchange/motor_pos", aps_cssi.recognises, aps_cssi.describe),
    "csaxs": Layout(
        "/entry/data/data, /entry/instrument/monochromator and eiger_4",
        csaxs.recognises,
        csaxs.describe,
        instead_of=("aps_26id",),
    ),
    "ptychoshelves": Layout(
        "/dp, and *_para.hdf5 with /ppX beside it", ptychoshelves.recognises, ptychoshelves.describe
    ),
    "nsls2_hxn": Layout(
        "/diffamp, /dp or frames of a detector, and /points or /scan/scan_positions",
        nsls2_hxn.recognises,
        nsls2_hxn.describe,
        instead_of=("aps_26id",),
    ),
    "ptyd": Layout("/chunks and /meta", ptyd.recognises, ptyd.describe),
    "ptychodus_training": Layout(
        "/patterns and /probe_position_x_px", ptychodus_training.recognises, ptychodus_training.describe
    ),
    "ptychopinn": Layout("diffraction or diff3d, and xcoords", ptychopinn.recognises, ptychopinn.describe),
    "ptychonn": Layout("reciprocal and position", ptychonn.recognises, ptychonn.describe),
    "tike": Layout(
        "data, scan_true or scan, and probe", tike.recognises, tike.describe, reconstruction=tike.BESIDE
    ),
}
"""Layouts by name. A file that several recognise is read by none, unless one is meant instead of others."""

RECONSTRUCTIONS: Mapping[str, ReconstructionLayout] = {
    "own_label": ReconstructionLayout(
        "the mark of a label made here",
        own_label.recognises_reconstruction,
        own_label.describe_reconstruction,
    ),
    "ptychodus_product": ReconstructionLayout(
        "/object, /probe and /probe_position_x_m", ptychodus_product.recognises, ptychodus_product.describe
    ),
    "nsls2_product": ReconstructionLayout(
        "/obj, /prb and /pos_xy", nsls2_product.recognises, nsls2_product.describe
    ),
    "ptychopinn": ReconstructionLayout(
        "objectGuess, probeGuess and xcoords",
        ptychopinn.recognises_reconstruction,
        ptychopinn.describe_reconstruction,
    ),
    "tike": ReconstructionLayout(
        "object, probe and patch_origin", tike.recognises_reconstruction, tike.describe_reconstruction
    ),
}
"""Reconstructions in files without frames, by name; the first that recognises a file reads it."""
