"""The layout "diamond": files of Diamond from before NXcxi_ptycho was agreed on.

They are what PtyPy's `DiamondNexus` reads (ptypy/experiment/diamond_nexus.py, "not quite NXptycho_cxi"), and
conventions are its own: x is along the columns and y along the rows of the object, both of the probe and in
m, the energy is in keV, and where motors of a raster are written down once for each axis, y is the slow one.
A unit that a field states counts instead. A mask lies in a file of its own, of no fixed name: use a mapping.
"""

from __future__ import annotations

from rehearsal_kit.data.scans.description import Positions, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import Finder, paired
from rehearsal_kit.data.scans.layouts.nexus import lengths_of, over_raster, square_pixel_m, told_quantity
from rehearsal_kit.data.scans.mapping import MaskAt
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES = "/entry_1/data/data"
ROW, COLUMN = "/entry_1/data/y", "/entry_1/data/x"
DETECTOR = "/entry_1/instrument_1/detector_1"
ENERGY = "/entry_1/instrument_1/beam_1/energy"
MONITOR = "/entry_1/instrument_1/monitor/data"
MASK = MaskAt(at=(f"{DETECTOR}/pixel_mask",), bits=0xFFFF)


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames and motors where these files have them."""
    return all(file.find(at) is not None for at in (FRAMES, ROW, COLUMN))


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    finder = Finder(file, reading)
    counts = frames_at(file, FRAMES)
    shape = counts.stored_shape
    values = over_raster(
        file, lengths_of(file, ROW), lengths_of(file, COLUMN), scan_shape=file.dataset(FRAMES).shape[:-2]
    )
    finder.found.update({"frames": FRAMES, "positions, row": ROW, "positions, column": COLUMN})
    if file.find(ENERGY) is not None:
        finder.found["energy"] = ENERGY
    return paired(
        ScanDescription(
            layout="diamond",
            counts=counts,
            positions=Positions(values=values, unit="m"),
            bad=finder.mask(MASK, shape),
            energy_ev=told_quantity(file, ENERGY, ENERGIES, default="keV"),
            distance_m=told_quantity(file, f"{DETECTOR}/distance", LENGTHS, default="m"),
            detector_pixel_m=square_pixel_m(file, DETECTOR),
            dark=finder.image("dark", (f"{DETECTOR}/darkfield",), shape),
            flat=finder.image("flat", (f"{DETECTOR}/flatfield",), shape),
            monitor=finder.monitor((MONITOR,), len(counts)),
            found=finder.found,
        ),
        file,
    )
