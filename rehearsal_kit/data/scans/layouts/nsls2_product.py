"""The reconstruction "nsls2_product": what programs of NSLS-II save, without frames.

Positions are rows (x, y) in µm, the distance is in µm and the energy in keV, as ptychodus reads them. Where
the scan lies in the object is not said: it is taken to lie in its middle, where those programs put it.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ObjectPlace, Positions, ReconstructionDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.objects import shape_of_object
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS, factor_of

OBJECT, PROBE, POSITIONS = "/obj", "/prb", "/pos_xy"
PIXEL = ("/img_pixel_size_y", "/img_pixel_size_x")


def recognises(file: ScanFile) -> bool:
    """Whether the file has an object, a probe and positions where these programs write them."""
    return all(file.find(at) is not None for at in (OBJECT, PROBE, POSITIONS))


def describe(file: ScanFile) -> ReconstructionDescription:
    """The reconstruction in an open file; ScanError names the dataset that is missing or wrong."""
    values = file.values(POSITIONS).astype(np.float64)
    if values.ndim != 2 or values.shape[0] not in (2, 3) or not np.isfinite(values).all() or not values.size:
        raise ScanError(
            f"{file.path}: {POSITIONS} is of shape {values.shape}; it must be (2, frame), finite x and y."
        )
    x, y = values[-2:]  # of three rows, the first one is a number of the frame
    unit = factor_of(file.unit(POSITIONS, "um"), LENGTHS, f"{file.path}: {POSITIONS}")
    positions = np.stack([y, x], axis=1) * unit
    height, width = (file.quantity(at, LENGTHS, default="m") for at in PIXEL)
    if height is None or width is None or abs(height / width - 1) > 1e-3:
        raise ScanError(
            f"{file.path}: {PIXEL[0]} is {height} m and {PIXEL[1]} {width} m; they must be there, and alike."
        )
    shape, layer, reason = shape_of_object(file.dataset(OBJECT), OBJECT)
    place = None
    if shape is not None:
        middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
        place = ObjectPlace(
            path=file.path,
            at=OBJECT,
            shape=shape,
            origin=middle - np.array(shape) / 2 * width,
            layer=layer,
            pixel_m=width,
            probe_side=file.dataset(PROBE).shape[-1],
        )
    return ReconstructionDescription(
        place=place,
        no_object=reason,
        positions=Positions(values=positions, unit="m"),
        energy_ev=file.quantity("/energy", ENERGIES, default="keV"),
        distance_m=file.quantity("/det_dist", LENGTHS, default="um"),
    )
