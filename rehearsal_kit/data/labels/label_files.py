"""Labels as HDF5 files: whole or not there, private, and read through the door for files from elsewhere.

/object     complex64 (row, column)           attributes of the file: rehearsal_kit_label (the version of
/probe      complex64 (mode, row, column)     this layout), library, version, scan, digest; settings, as
/coverage   float32 (row, column)             JSON; origin_px (2,), and pixel_m where it is known
/positions  float64 (frame, 2)
/errors     float64 (epoch,)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.base.files import written_whole
from rehearsal_kit.base.plain_values import with_tuples
from rehearsal_kit.data.labels.label import Label, LabelSource
from rehearsal_kit.data.scans.doors.hdf5 import attribute, dataset_of, opened, values_of
from rehearsal_kit.data.scans.layouts.own_label import FORMAT

VERSION = 1
_TEXTS = ("library", "version", "scan", "digest")
_ARRAYS = {"object": "c", "probe": "c", "coverage": "f", "positions": "f", "errors": "f"}
"""Names of the datasets, and of which kind their numbers are."""


def write_label(label: Label, path: str | Path) -> Path:
    """Write a label to a private file (0600), which is there when it is whole; returns the path.

    Raises:
        ScanError: the folder is missing or cannot be written.
    """
    path = Path(path)
    try:
        with written_whole(path) as unfinished, h5py.File(unfinished, "w") as file:
            file.attrs[FORMAT] = VERSION
            for name in _TEXTS:
                file.attrs[name] = getattr(label.source, name)
            file.attrs["settings"] = json.dumps(dict(label.source.settings), sort_keys=True, allow_nan=False)
            file.attrs["origin_px"] = label.origin_px
            if label.pixel_m is not None:
                file.attrs["pixel_m"] = label.pixel_m
            file["object"], file["probe"], file["coverage"] = label.object, label.probe, label.coverage
            file["positions"], file["errors"] = label.positions_px, np.array(label.errors, np.float64)
    except OSError as error:
        raise ScanError(f"{path}: the label cannot be written: {error}.") from error
    return path


def read_label(path: str | Path) -> Label:
    """The label that `write_label` wrote.

    Raises:
        NotYetError: no such file, or one that its writer has not finished.
        ScanError: no label, one of another version, or one that lacks something or does not fit together.
    """
    path = Path(path)
    with opened(path) as file:
        _require_label(file, path)
        found = {
            name: values_of(file, name, shapes=(dataset_of(file, name).shape,), kinds=kind)
            for name, kind in _ARRAYS.items()
        }
        origin = np.asarray(_told(file, "origin_px"))
        pixel = attribute(file, "pixel_m")
        source = LabelSource(
            settings=_settings(file, path), **{each: str(_told(file, each)) for each in _TEXTS}
        )
    if origin.shape != (2,) or origin.dtype.kind != "f" or found["errors"].ndim != 1:
        raise ScanError(
            f"{path}: origin_px is {origin.dtype} {origin.shape} and errors are {found['errors'].shape}; "
            "they must be two numbers and (epoch,). Write the label anew."
        )
    return Label(
        object=found["object"],
        origin_px=(float(origin[0]), float(origin[1])),
        pixel_m=None if pixel is None else _length(pixel, path),
        probe=found["probe"],
        coverage=found["coverage"],
        positions_px=found["positions"],
        errors=tuple(found["errors"].tolist()),
        source=source,
    )


def _require_label(file: h5py.File, path: Path) -> None:
    version = attribute(file, FORMAT)
    if version is None:
        raise ScanError(f"{path}: is no label: it lacks the attribute {FORMAT}, which write_label gives it.")
    if version != VERSION:
        raise ScanError(
            f"{path}: is a label of version {version}; this rehearsal_kit reads {VERSION}. Retrieve it anew."
        )


def _told(file: h5py.File, name: str) -> Any:
    value = attribute(file, name)
    if value is None:
        raise ScanError(f"{file.filename}: lacks the attribute {name}; write the label anew.")
    return value


def _settings(file: h5py.File, path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(str(_told(file, "settings")))
    except (ValueError, RecursionError) as error:
        raise ScanError(f"{path}: its settings are no JSON ({error}); write the label anew.") from error
    if not isinstance(settings, dict):
        raise ScanError(f"{path}: its settings are a {type(settings).__name__}; they must have names.")
    return with_tuples(settings)


def _length(value: Any, path: Path) -> float:
    numbers = np.asarray(value)
    if numbers.shape != () or numbers.dtype.kind != "f" or not 0 < numbers < np.inf:
        raise ScanError(f"{path}: pixel_m is {value!r}; it must be one number above 0, in metres.")
    return float(numbers)
