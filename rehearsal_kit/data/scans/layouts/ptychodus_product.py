"""The reconstruction "ptychodus_product": what ptychodus saves, without frames.

Positions are in metres and grow with those of the object, whose middle lies at center_x_m and center_y_m;
probe_position_indexes say which frame each belongs to.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ObjectPlace, Positions, ReconstructionDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.objects import shape_of_object
from rehearsal_kit.data.scans.quantities import require_positive, square_side

OBJECT, PROBE = "/object", "/probe"
ROWS, COLUMNS, NUMBERS = "/probe_position_y_m", "/probe_position_x_m", "/probe_position_indexes"


def recognises(file: ScanFile) -> bool:
    """Whether the file has an object, and positions in metres, where ptychodus writes them."""
    return all(file.find(at) is not None for at in (OBJECT, PROBE, ROWS, COLUMNS))


def describe(file: ScanFile) -> ReconstructionDescription:
    """The reconstruction in an open file; ScanError names the dataset that is missing or wrong."""
    rows, columns = (file.values(at).reshape(-1).astype(np.float64) for at in (ROWS, COLUMNS))
    numbers = file.values(NUMBERS, kinds="iu").reshape(-1) if file.find(NUMBERS) is not None else None
    if len(rows) != len(columns) or (numbers is not None and len(numbers) != len(rows)):
        count = "no" if numbers is None else len(numbers)
        raise ScanError(
            f"{file.path}: {ROWS} has {len(rows)} positions, {COLUMNS} {len(columns)} and {NUMBERS} {count} "
            "numbers; there must be as many of each."
        )
    positions = np.stack([rows, columns], axis=1)
    if not np.isfinite(positions).all():
        raise ScanError(f"{file.path}: holds positions that are not finite; write them anew.")
    shape, layer, reason = shape_of_object(file.dataset(OBJECT), OBJECT)
    place = None
    if shape is not None:
        pixel = _pixel_m(file)
        middle = [_attribute(file, OBJECT, name) for name in ("center_y_m", "center_x_m")]
        place = ObjectPlace(
            path=file.path,
            at=OBJECT,
            shape=shape,
            origin=np.array(middle) - np.array(shape) / 2 * pixel,
            layer=layer,
            pixel_m=pixel,
            probe_side=file.dataset(PROBE).shape[-1],
        )
    return ReconstructionDescription(
        place=place,
        no_object=reason,
        positions=Positions(values=positions, unit="m"),
        numbers=None if numbers is None else numbers.astype(np.int64),
        energy_ev=_known(file, "probe_energy_eV"),
        distance_m=_known(file, "detector_object_distance_m"),
    )


def _pixel_m(file: ScanFile) -> float:
    height, width = (_attribute(file, OBJECT, name) for name in ("pixel_height_m", "pixel_width_m"))
    require_positive(width, f"{file.path}: pixel_width_m of {OBJECT}")
    return square_side(height, width, f"{file.path}: object pixels")


def _attribute(file: ScanFile, at: str, name: str) -> float:
    value = file.number(f"{at}@{name}")
    if value is None or not np.isfinite(value):
        raise ScanError(f"{file.path}: the attribute {name} of {at} is {value}; it must be a number.")
    return value


def _known(file: ScanFile, name: str) -> float | None:
    """A number of the whole product; None where it is missing or zero, as unknown ones are written."""
    value = file.number(f"/@{name}")
    return value if value is not None and 0 < value < np.inf else None
