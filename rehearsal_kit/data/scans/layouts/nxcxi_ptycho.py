"""The layout "nxcxi_ptycho": NeXus for ptychography, which CXI can read, too.

It is written down in NXcxi_ptycho.nxdl.xml of the NeXus definitions, of which old revisions call it NXptycho.
Unlike in CXI, the photon's energy is beam_1/energy (source_1/energy is the machine's), every field states its
unit, and frames of a raster are (slow, fast, row, column). Motors move the sample, along the vector that each
states, or else along the axis that it is called after; axes are those of CXI and NeXus: z along the beam, y
up. Rows count down and columns against x, as CXI has it.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts import cxi
from rehearsal_kit.data.scans.layouts.mapped import Finder, paired
from rehearsal_kit.data.scans.layouts.nexus import (
    beam_centre,
    lengths_of,
    over_raster,
    square_pixel_m,
    told_quantity,
)
from rehearsal_kit.data.scans.mapping import MaskAt
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS
from rehearsal_kit.data.scans.reading import ScanReading

ENTRY = "/entry_1"
DETECTOR = f"{ENTRY}/instrument_1/detector_1"
BEAM = f"{ENTRY}/instrument_1/beam_1"
MOTORS = f"{ENTRY}/sample_1/transformations"
FRAMES = (f"{DETECTOR}/data", f"{ENTRY}/data_1/data", f"{DETECTOR}/data_1")
ENERGY = (f"{BEAM}/energy", f"{BEAM}/incident_beam_energy")
MONITORS = (
    f"{ENTRY}/instrument_1/monitor_1/data",
    f"{ENTRY}/instrument_1/monitor/data",
    f"{ENTRY}/monitor_1/data",
)
MASK = MaskAt(at=(f"{DETECTOR}/pixel_mask",), bits=0xFFFF)
ALONG = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0)}
"""Along what a motor moves that does not say it, by its name."""
NAMES = ("NXcxi_ptycho", "NXptycho")


def recognises(file: ScanFile) -> bool:
    """Whether the file says that it has this definition, and has its detector."""
    return file.text(f"{ENTRY}/definition") in NAMES and file.first(*FRAMES) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    finder = Finder(file, reading)
    at = file.first(*FRAMES) or FRAMES[0]
    counts = frames_at(file, at)
    finder.found["frames"] = at
    shape, pixel = counts.stored_shape, square_pixel_m(file, DETECTOR)
    energy = file.first(*ENERGY)
    if energy is not None:
        finder.found["energy"] = energy
    return paired(
        ScanDescription(
            layout="nxcxi_ptycho",
            counts=counts,
            positions=_positions(finder, file.dataset(at).shape[:-2]),
            bad=finder.mask(MASK, shape),
            energy_ev=None if energy is None else told_quantity(file, energy, ENERGIES, default="J"),
            distance_m=told_quantity(file, f"{DETECTOR}/distance", LENGTHS, default="m"),
            detector_pixel_m=pixel,
            centre_px=beam_centre(
                file, f"{DETECTOR}/beam_center_y", f"{DETECTOR}/beam_center_x", pixel_m=pixel
            ),
            dark=finder.image("dark", (f"{DETECTOR}/darkfield",), shape),
            flat=finder.image("flat", (f"{DETECTOR}/flatfield",), shape),
            monitor=finder.monitor(MONITORS, len(counts)),
            found=finder.found,
        ),
        file,
    )


def _positions(finder: Finder, scan_shape: tuple[int, ...]) -> Positions:
    """Displacement of the probe over the object, by the motors; without them by the translation."""
    file = finder.file
    vectors = {name: vector for name in file.names(MOTORS) if (vector := _vector(file, name)) is not None}
    across = [name for name, vector in vectors.items() if np.any(np.abs(vector[:2]) > 1e-6)]
    if not across:
        positions, finder.found["positions"] = cxi.positions_in(file)
        return positions
    if len(across) != 2:
        raise ScanError(
            f"{file.path}: {MOTORS} has {', '.join(across)}, which move across the beam; there must be two, "
            "called x and y or with an attribute vector."
        )
    # Which one is written down first does not matter; of two 1-D axes of a raster that of rows comes first.
    across.sort(key=lambda name: -abs(vectors[name][1]))
    moved = over_raster(
        file, *(lengths_of(file, f"{MOTORS}/{name}") for name in across), scan_shape=scan_shape
    )
    # Of the sample, in space: the probe moves against it, rows against y and columns against x.
    sample = moved @ np.stack([vectors[name] for name in across])
    finder.found["positions"] = f"{MOTORS}: {' and '.join(across)}, which move the sample"
    return Positions(values=sample[:, [1, 0]], unit="m")


def _vector(file: ScanFile, name: str) -> Floats | None:
    """Along what a motor moves the sample, x y z; None if it does not, or does not say it."""
    at = f"{MOTORS}/{name}"
    if file.attribute(at, "transformation_type") == "rotation":
        return None
    vector = file.attribute(at, "vector")
    if vector is None:
        vector = ALONG.get(name)
    if vector is None:
        return None
    found = np.asarray(vector)
    if found.shape != (3,) or found.dtype.kind not in "iuf" or not np.linalg.norm(found) > 0:
        raise ScanError(f"{file.path}: the attribute vector of {at} is {vector}; it must be x, y, z.")
    unit: Floats = found / np.linalg.norm(found)
    return unit
