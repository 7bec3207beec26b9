"""The layout "ptychodus_training": training data as ptychodus writes them, frames with their object.

Its positions are pixels of the object, counted from the middle of the first pixel; bad pixels of the frames
were filled. Where the detector stands is told by the side of a pixel of the object, as in the far field.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Mask, ObjectPlace, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.geometry import EV_TIMES_M
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.objects import shape_of_object
from rehearsal_kit.data.scans.quantities import require_positive, square_side
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES, MASK, OBJECT = "/patterns", "/bad_pixels", "/object"
ROWS, COLUMNS = "/probe_position_y_px", "/probe_position_x_px"
PIXEL = ("/object_pixel_height_m", "/object_pixel_width_m")
DISTANCE, ENERGY = "/detector_object_distance_m", "/photon_energy_eV"


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames, and positions in pixels, where ptychodus writes them."""
    return file.find(FRAMES) is not None and file.find(COLUMNS) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    frames = frames_at(file, FRAMES)
    rows, columns = (file.values(at).reshape(-1).astype(np.float64) for at in (ROWS, COLUMNS))
    if len(rows) != len(columns):
        raise ScanError(
            f"{file.path}: {ROWS} has {len(rows)} positions and {COLUMNS} has {len(columns)}; there must be "
            "as many of both."
        )
    height, width, distance, energy = (_number(file, at) for at in (*PIXEL, DISTANCE, ENERGY))
    square_side(height, width, f"{file.path}: object pixels")
    if frames.stored_shape[0] != frames.stored_shape[1]:
        raise ScanError(f"{file.path}: frames are {frames.stored_shape}; only square ones are read.")
    shape, layer, reason = shape_of_object(file.dataset(OBJECT), OBJECT)
    # Pixels are counted from their middle here, and from their edge there.
    places = np.stack([rows, columns], axis=1) + 0.5
    corner = -np.array(shape or (0, 0)) / 2 * width
    place = shape and ObjectPlace(
        path=file.path,
        at=OBJECT,
        shape=shape,
        origin=corner,
        layer=layer,
        pixel_m=width,
        probe_side=frames.stored_shape[1],
    )
    return paired(
        ScanDescription(
            layout="ptychodus_training",
            counts=frames,
            positions=Positions(values=places * width + corner, unit="m"),
            object=place or None,
            no_object=reason,
            bad=_bad_pixels(file, frames.stored_shape),
            energy_ev=energy,
            distance_m=distance,
            detector_pixel_m=EV_TIMES_M / energy * distance / (frames.stored_shape[1] * width),
            found={
                "frames": f"{FRAMES}, bad pixels of which were filled",
                "positions": f"{ROWS} and {COLUMNS}, pixels of the object",
                "energy": ENERGY,
                "distance": DISTANCE,
                "detector pixel": f"follows from {PIXEL[1]}",
                **({"object": OBJECT} if shape else {}),
                **({"mask": MASK} if file.find(MASK) is not None else {}),
            },
        ),
        file,
    )


def _number(file: ScanFile, at: str) -> float:
    value = file.number(at)
    if value is None:
        raise ScanError(f"{file.path}: there is no {at}.")
    return require_positive(value, f"{file.path}: {at}")


def _bad_pixels(file: ScanFile, shape: tuple[int, int]) -> Mask | None:
    if file.find(MASK) is None:
        return None
    bad: Mask = file.values(MASK, shapes=(shape,), kinds="biu") != 0
    if bad.all():
        raise ScanError(f"{file.path}: {MASK} marks every pixel as bad; it is true where they are.")
    return bad
