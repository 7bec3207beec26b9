"""One held-out sample of a task, what is true of it, and what the network makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""float32 (row, column)."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """All images are float32 (row, column); phases in rad."""

    task: int
    step: int
    name: str
    """Of the field that goes into the network."""
    input: Image
    """As the network sees it; colours are averaged."""
    truth: Mapping[str, Image]
    """The targets that are images, by field."""
    predicted: Mapping[str, Image]
    """The outputs that meet them, under the same names."""
    words: str
    """What is true and what was predicted where that is a class; else empty."""


def append_preview(path: Path, preview: Preview, *, after: int) -> None:
    """Add a preview to an HDF5 file as `task_<j>/after_<i>`; the true images are written once a task."""
    with h5py.File(path, "a") as file:
        task = file.require_group(f"task_{preview.task}")
        if "input" not in task:
            task.create_dataset("input", data=preview.input, compression="gzip").attrs["name"] = preview.name
            for name, image in preview.truth.items():
                task.create_dataset(f"truth/{name}", data=image, compression="gzip")
        group = task.create_group(f"after_{after}")
        group.attrs["step"] = preview.step
        group.attrs["words"] = preview.words
        for name, image in preview.predicted.items():
            group.create_dataset(f"predicted/{name}", data=image, compression="gzip")
    path.chmod(0o600)
