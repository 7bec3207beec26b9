"""The layout "cxi": the Coherent X-ray Imaging data bank's format.

All values are in SI units (the energy in joule), the translation is the motion of the sample, and the
detector's basis vectors say how rows and columns lie in space (Maia, Nature Methods 9, 854, 2012).

What goes beyond the format (attributes `origin`, `units`, `simulated`) is explained in cxi_writing.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.geometry import EV_TIMES_M, object_pixel_m
from rehearsal_kit.data.scans.hdf5 import attribute, dataset_of, find, values_of
from rehearsal_kit.data.scans.scan import Floats, Scan

DETECTOR = "/entry_1/instrument_1/detector_1"
SOURCE = "/entry_1/instrument_1/source_1"
IMAGE = "/entry_1/image_1/data"
TRANSLATIONS = (
    "/entry_1/data_1/translation",
    "/entry_1/sample_1/geometry_1/translation",
    f"{DETECTOR}/translation",
)

JOULE_PER_EV = 1.602176634e-19
HAS_SIGNAL = 0x1000
"""The one bit of a CXI mask that does not make a pixel bad."""
INVALID = 0x1
INVERTED = 0.75
"""Share of bad pixels above which a mask of zeros and ones must be the wrong way round."""

_LENGTHS = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "nm": 1e-9}
_ENERGIES = {"J": 1.0, "joule": 1.0, "eV": JOULE_PER_EV, "keV": 1e3 * JOULE_PER_EV}


def recognises(file: h5py.File) -> bool:
    """Whether the file says that it is CXI."""
    return find(file, "cxi_version") is not None


def describe(file: h5py.File) -> Scan:
    """The scan in an open CXI file; ScanError names the dataset that is missing or wrong."""
    path = Path(file.filename)
    frames_at = "/entry_1/data_1/data" if find(file, "/entry_1/data_1/data") else f"{DETECTOR}/data"
    frames = dataset_of(file, frames_at)
    if frames.ndim != 3 or frames.dtype.kind not in "iuf" or 0 in frames.shape:
        raise ScanError(
            f"{path}: {frames_at} is {frames.dtype} of shape {frames.shape}; a scan needs real counts "
            "(frame, row, column)."
        )
    energy, distance, pixel = _geometry(file)
    object_pixel = None
    if energy is not None and distance is not None and pixel is not None:
        object_pixel = object_pixel_m(path, (energy, distance, pixel), frame_shape=frames.shape[1:])
    translations, units = _translations(file, len(frames))
    if units == "m" and object_pixel is None:
        raise ScanError(
            f"{path}: positions are in metres, but energy {energy} eV, distance {distance} m and detector "
            f"pixel {pixel} m do not give an object pixel; write them to {SOURCE}/energy, "
            f"{DETECTOR}/distance and {DETECTOR}/x_pixel_size."
        )
    step = object_pixel if units == "m" and object_pixel is not None else 1.0
    object_at, origin, reason = _object(file)
    if origin is None:  # No object to lie in: the first patch begins at the corner.
        origin = translations.min(axis=0) - np.array(frames.shape[1:]) / 2 * step
    return Scan(
        path=path,
        layout="cxi",
        frames_at=frames_at,
        object_at=object_at,
        no_object=reason,
        frame_shape=frames.shape[1:],
        object_shape=dataset_of(file, object_at).shape if object_at else None,
        positions_px=(translations - origin) / step,
        translations_m=translations if units == "m" else None,
        bad_pixels=np.flatnonzero(_bad_pixels(file, frames.shape[1:])),
        energy_ev=energy,
        distance_m=distance,
        detector_pixel_m=pixel,
        object_pixel_m=object_pixel,
        simulated=bool(np.any(attribute(frames, "simulated") or False)),
    )


def _geometry(file: h5py.File) -> tuple[float | None, float | None, float | None]:
    """Photon energy in eV, distance in m, side of a detector pixel in m; None where the file is silent."""
    joule = _quantity(file, f"{SOURCE}/energy", _ENERGIES)
    energy = None if joule is None else joule / JOULE_PER_EV
    if energy is None:
        wavelength = _quantity(file, f"{SOURCE}/wavelength", _LENGTHS)
        energy = None if wavelength is None else EV_TIMES_M / wavelength
    if energy is not None and not 1.24 <= energy <= 1.24e6:  # 1 µm to 1 pm
        raise ScanError(
            f"{file.filename}: the photon energy is {energy:g} eV, outside 1.24 eV to 1.24 MeV; CXI holds it "
            f"in joule at {SOURCE}/energy."
        )
    distance = _quantity(file, f"{DETECTOR}/distance", _LENGTHS)
    columns = _quantity(file, f"{DETECTOR}/x_pixel_size", _LENGTHS)
    rows = _quantity(file, f"{DETECTOR}/y_pixel_size", _LENGTHS)
    if columns and rows and abs(rows / columns - 1) > 1e-3:
        raise ScanError(
            f"{file.filename}: detector pixels are {rows:g} m by {columns:g} m; only square ones are read."
        )
    return energy, distance, columns if columns is not None else rows


def _quantity(file: h5py.File, at: str, units: Mapping[str, float]) -> float | None:
    if find(file, at) is None:
        return None
    value = float(values_of(file, at, shapes=((), (1,))).reshape(()))
    unit = _units(file, at, next(iter(units)))
    if unit not in units:
        raise ScanError(f"{file.filename}: {at} is in {unit!r}; known units are {', '.join(units)}.")
    if not 0 < value < np.inf:
        raise ScanError(f"{file.filename}: {at} is {value}; it must be a number above zero.")
    return value * units[unit]


def _translations(file: h5py.File, frames: int) -> tuple[Floats, str]:
    """Displacement of the probe over the object (frame, 2), row and column, and its unit: "m" or "pixel"."""
    at = next((place for place in TRANSLATIONS if find(file, place)), TRANSLATIONS[0])
    values = values_of(file, at, shapes=((frames, 3),)).astype(np.float64)
    if not np.isfinite(values).all():
        raise ScanError(f"{file.filename}: {at} holds positions that are not finite.")
    units = _units(file, at, "m")
    if units != "pixel":
        if units not in _LENGTHS:
            raise ScanError(f"{file.filename}: {at} is in {units!r}; known are pixel, {', '.join(_LENGTHS)}.")
        values, units = values * _LENGTHS[units], "m"
    # The probe moves over the sample against the sample's own motion.
    return -values @ _directions(file).T, units


def _directions(file: h5py.File) -> Floats:
    """Unit vectors (2, 3), x y z, along which rows and columns count up."""
    at = f"{DETECTOR}/basis_vectors"
    if find(file, at) is None:
        return np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    vectors = values_of(file, at, shapes=((2, 3), (3, 2))).astype(np.float64)
    if vectors.shape == (3, 2):  # As some writers have it; the specification says (2, 3).
        vectors = vectors.T
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (lengths > 0).all():
        raise ScanError(f"{file.filename}: {at} is {vectors.tolist()}; no vector may be zero.")
    directions: Floats = vectors / lengths
    return directions


def _bad_pixels(file: h5py.File, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """What the mask of the file marks: any bit but one, in whole numbers of any type, or True."""
    at = f"{DETECTOR}/mask"
    if find(file, at) is None:
        return np.zeros(shape, bool)
    mask = values_of(file, at, shapes=(shape,), kinds="biuf")
    whole = mask.dtype.kind != "f" or ((mask == np.floor(mask)) & (np.abs(mask) < 2**53)).all()
    if not whole:
        raise ScanError(f"{file.filename}: {at} holds numbers that are not whole; its bits are flags.")
    bad: NDArray[np.bool_] = (mask.astype(np.int64) & ~HAS_SIGNAL) != 0
    if bad.all():
        raise ScanError(
            f"{file.filename}: {at} marks every pixel as bad; a CXI mask is 0 where they are good."
        )
    if bad.mean() > INVERTED and mask.max() == 1:
        raise ScanError(
            f"{file.filename}: {at} holds only 0 and 1 and is 1 in {bad.mean():.0%} of the pixels, which are "
            "bad then: a CXI mask is 0 where they are good. If this one is 1 there, write 1 - mask."
        )
    return bad


def _object(file: h5py.File) -> tuple[str | None, Floats | None, str]:
    """Where the object is, the translation of its corner, and otherwise why there is none."""
    dataset = find(file, IMAGE)
    if dataset is None:
        return None, None, "no reconstruction: nothing to train on"
    place = attribute(dataset, "origin")
    origin = np.asarray(() if place is None else place)
    usable = isinstance(dataset, h5py.Dataset) and len(dataset.shape or ()) == 2
    usable = usable and dataset.dtype.kind in "ciuf"
    if not usable or origin.shape != (2,) or origin.dtype.kind not in "iuf" or not np.isfinite(origin).all():
        reason = (
            f"{IMAGE} does not say where the scan lies in it: it must be an array (row, column) with an "
            "attribute origin, the translation of its corner"
        )
        return None, None, reason
    return IMAGE, origin.astype(np.float64), ""


def _units(file: h5py.File, at: str, default: str) -> str:
    """The unit that a dataset states; `default` where it states none."""
    stated = attribute(dataset_of(file, at), "units")
    return default if stated is None else str(stated)
