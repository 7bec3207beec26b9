"""The layout "cxi": the Coherent X-ray Imaging data bank's format.

All values are in SI units (the energy in joule), the translation is the motion of the sample, and the
detector's basis vectors say how rows and columns lie in space (Maia, Nature Methods 9, 854, 2012).

What goes beyond the format (attributes `origin`, `units`, `simulated`) is explained in cxi_writing.py.
"""

from __future__ import annotations

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, ObjectPlace, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.geometry import EV_TIMES_M
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.layouts.nexus import square_pixel_m
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS, factor_of
from rehearsal_kit.data.scans.reading import ScanReading

DETECTOR = "/entry_1/instrument_1/detector_1"
SOURCE = "/entry_1/instrument_1/source_1"
IMAGE = "/entry_1/image_1/data"
TRANSLATIONS = (
    "/entry_1/data_1/translation",
    "/entry_1/sample_1/geometry_1/translation",
    f"{DETECTOR}/translation",
)

HAS_SIGNAL = 0x1000
"""The one bit of a CXI mask that does not make a pixel bad."""
INVALID = 0x1
INVERTED = 0.75
"""Share of bad pixels above which a mask of zeros and ones must be the wrong way round."""


def recognises(file: ScanFile) -> bool:
    """Whether the file says that it is CXI."""
    return file.find("/cxi_version") is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open CXI file; ScanError names the dataset that is missing or wrong."""
    frames = frames_at(file, file.first("/entry_1/data_1/data") or f"{DETECTOR}/data")
    positions, at = positions_in(file)
    place, reason = _object(file)
    simulated = file.attribute(frames.blocks[0].at, "simulated")
    return paired(
        ScanDescription(
            layout="cxi",
            counts=frames,
            positions=positions,
            object=place,
            no_object=reason,
            bad=_bad_pixels(file, frames.stored_shape),
            energy_ev=_energy_ev(file),
            distance_m=file.quantity(f"{DETECTOR}/distance", LENGTHS, default="m"),
            detector_pixel_m=square_pixel_m(file, DETECTOR),
            simulated=bool(np.any(simulated or False)),
            found={
                "frames": file.first("/entry_1/data_1/data") or f"{DETECTOR}/data",
                "positions": f"{at}, the sample's motion along the detector's basis vectors",
                **{
                    name: place
                    for name, place in (
                        ("energy", file.first(f"{SOURCE}/energy", f"{SOURCE}/wavelength")),
                        ("distance", file.first(f"{DETECTOR}/distance")),
                        (
                            "detector pixel",
                            file.first(f"{DETECTOR}/x_pixel_size", f"{DETECTOR}/y_pixel_size"),
                        ),
                        ("mask", file.first(f"{DETECTOR}/mask")),
                        ("object", place.at if place else None),
                    )
                    if place is not None
                },
            },
        ),
        file,
    )


def _energy_ev(file: ScanFile) -> float | None:
    energy = file.quantity(f"{SOURCE}/energy", ENERGIES, default="J")
    if energy is None:
        wavelength = file.quantity(f"{SOURCE}/wavelength", LENGTHS, default="m")
        energy = None if wavelength is None else EV_TIMES_M / wavelength
    if energy is not None and not 1.24 <= energy <= 1.24e6:  # 1 µm to 1 pm
        raise ScanError(
            f"{file.path}: the photon energy is {energy:g} eV, outside 1.24 eV to 1.24 MeV; CXI holds it "
            f"in joule at {SOURCE}/energy."
        )
    return energy


def positions_in(file: ScanFile) -> tuple[Positions, str]:
    """Displacement of the probe over the object, and the dataset that it follows from."""
    at = file.first(*TRANSLATIONS) or TRANSLATIONS[0]
    values = file.values(at).astype(np.float64)
    if values.ndim != 2 or values.shape[1] != 3:
        raise ScanError(f"{file.path}: {at} is of shape {values.shape}; it must be (frame, 3), x y z.")
    unit = file.unit(at, "m")
    if unit != "pixel":
        values = values * factor_of(unit, {"pixel": 1.0, **LENGTHS}, f"{file.path}: {at}")
    # The probe moves over the sample against the sample's own motion.
    moved = -values @ _directions(file).T
    return Positions(values=moved, unit="pixel" if unit == "pixel" else "m"), at


def _directions(file: ScanFile) -> Floats:
    """Unit vectors (2, 3), x y z, along which rows and columns count up."""
    at = f"{DETECTOR}/basis_vectors"
    if file.find(at) is None:
        return np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    vectors = file.values(at, shapes=((2, 3), (3, 2))).astype(np.float64)
    if vectors.shape == (3, 2):  # As some writers have it; the specification says (2, 3).
        vectors = vectors.T
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (lengths > 0).all():
        raise ScanError(f"{file.path}: {at} is {vectors.tolist()}; no vector may be zero.")
    directions: Floats = vectors / lengths
    return directions


def _bad_pixels(file: ScanFile, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """What the mask of the file marks: any bit but one, in whole numbers of any type, or True."""
    at = f"{DETECTOR}/mask"
    if file.find(at) is None:
        return None
    mask = file.values(at, shapes=(shape,), kinds="biuf")
    whole = mask.dtype.kind != "f" or ((mask == np.floor(mask)) & (np.abs(mask) < 2**53)).all()
    if not whole:
        raise ScanError(f"{file.path}: {at} holds numbers that are not whole; its bits are flags.")
    bad: NDArray[np.bool_] = (mask.astype(np.int64) & ~HAS_SIGNAL) != 0
    if bad.all():
        raise ScanError(f"{file.path}: {at} marks every pixel as bad; a CXI mask is 0 where they are good.")
    if bad.mean() > INVERTED and mask.max() == 1:
        raise ScanError(
            f"{file.path}: {at} holds only 0 and 1 and is 1 in {bad.mean():.0%} of the pixels, which are "
            "bad then: a CXI mask is 0 where they are good. If this one is 1 there, write 1 - mask."
        )
    return bad


def _object(file: ScanFile) -> tuple[ObjectPlace | None, str]:
    """Where the object is, and otherwise why there is none."""
    dataset = file.find(IMAGE)
    if dataset is None:
        return None, "no reconstruction: nothing to train on"
    place = file.attribute(IMAGE, "origin")
    origin = np.asarray(() if place is None else place)
    usable = isinstance(dataset, h5py.Dataset) and len(dataset.shape or ()) == 2
    usable = usable and dataset.dtype.kind in "ciuf"
    if not usable or origin.shape != (2,) or origin.dtype.kind not in "iuf" or not np.isfinite(origin).all():
        reason = (
            f"{IMAGE} does not say where the scan lies in it: it must be an array (row, column) with an "
            "attribute origin, the translation of its corner"
        )
        return None, reason
    rows, columns = dataset.shape
    return ObjectPlace(path=file.path, at=IMAGE, shape=(rows, columns), origin=origin.astype(np.float64)), ""
