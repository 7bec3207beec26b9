"""Writing the layout "cxi".

Where this writer has to say more than the format does, it uses attributes:

- `entry_1/image_1/data`, attribute `origin` (2,): the translation (row, column) at which the centre of the
  patch is the corner (0, 0) of the object; in the unit of the translation. Without it nobody knows where
  the scan lies in the object, and the object is not used.
- `entry_1/sample_1/geometry_1/translation`, attribute `units`: "m", or "pixel" (of the object) where the
  pixel size is unknown; the sign is the same.
- `entry_1/instrument_1/detector_1/data`, attribute `simulated`: 1 if the counts were computed.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import h5py
import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.layouts.cxi import DETECTOR, IMAGE, INVALID, SOURCE, TRANSLATIONS
from rehearsal_kit.data.scans.quantities import JOULE_PER_EV


def write_cxi(path: str | Path, acquisition: Acquisition) -> Path:
    """Write a scan; it appears under its name only when it is whole. Returns the path.

    Raises:
        ScanError: the folder is missing or cannot be written.
    """
    path = Path(path)
    # Same folder, so that the rename is atomic; hidden, so that no pattern like *.cxi matches it.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with h5py.File(unfinished, "w") as file:
            _write(file, acquisition)
        unfinished.replace(path)
    except OSError as error:
        raise ScanError(f"{path}: cannot be written: {error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _write(file: h5py.File, acquisition: Acquisition) -> None:
    file["cxi_version"] = 160
    file["number_of_entries"] = 1
    counts = acquisition.counts
    data = file.create_dataset(
        f"{DETECTOR}/data",
        data=counts,
        chunks=(1, *counts.shape[1:]),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    data.attrs["axes"] = "translation:y:x"
    data.attrs["simulated"] = int(acquisition.simulated)
    file["/entry_1/data_1/data"] = h5py.SoftLink(f"{DETECTOR}/data")
    if acquisition.good_pixels is not None:
        file[f"{DETECTOR}/mask"] = np.where(acquisition.good_pixels, 0, INVALID).astype(np.uint32)
    step = _write_geometry(file, acquisition)
    # With the default basis vectors the probe moves by +y over rows and +x over columns.
    translation = np.zeros((len(counts), 3))
    translation[:, 1], translation[:, 0] = acquisition.positions_px.T * step
    file[TRANSLATIONS[1]] = translation
    file[TRANSLATIONS[1]].attrs["units"] = "m" if acquisition.energy_ev is not None else "pixel"
    for place in (TRANSLATIONS[0], TRANSLATIONS[2]):
        file[place] = h5py.SoftLink(TRANSLATIONS[1])
    if acquisition.object is not None:
        file.create_dataset(
            IMAGE, data=acquisition.object, compression="gzip", compression_opts=1, shuffle=True
        )
        file[IMAGE].attrs["origin"] = np.zeros(2)
    if acquisition.probe is not None:
        file[f"{SOURCE}/illumination"] = acquisition.probe


def _write_geometry(file: h5py.File, acquisition: Acquisition) -> float:
    """Writes the geometry if it is known; returns the unit of the translation in object pixels."""
    pixel, side = acquisition.detector_pixel_m, acquisition.object_pixel_m
    if side is None or pixel is None or acquisition.energy_ev is None:
        return 1.0
    file[f"{SOURCE}/energy"] = acquisition.energy_ev * JOULE_PER_EV
    file[f"{DETECTOR}/distance"] = acquisition.distance_m
    file[f"{DETECTOR}/x_pixel_size"] = pixel
    file[f"{DETECTOR}/y_pixel_size"] = pixel
    file[f"{DETECTOR}/basis_vectors"] = np.array([[0.0, -pixel, 0.0], [-pixel, 0.0, 0.0]])
    return side
