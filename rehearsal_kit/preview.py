"""One held-out sample of a task, what is true of it, and what the network makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.run_folder import written_whole

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


def append_previews(path: Path, previews: Iterable[Preview], *, after: int) -> None:
    """Add previews to an HDF5 file as `task_<j>/after_<i>`; the true images are written once a task.

    What was there of the same task after the same one is replaced. The file is whole at every moment.
    """
    with written_whole(path) as partial:
        known = path.exists()
        if known:
            shutil.copyfile(path, partial)
        with h5py.File(partial, "r+" if known else "w") as file:
            for preview in previews:
                _append(file.require_group(f"task_{preview.task}"), preview, f"after_{after}")


def _append(task: h5py.Group, preview: Preview, name: str) -> None:
    if "input" not in task:
        task.create_dataset("input", data=preview.input, compression="gzip").attrs["name"] = preview.name
        for field, image in preview.truth.items():
            task.create_dataset(f"truth/{field}", data=image, compression="gzip")
    if name in task:  # the run has come by here before
        del task[name]
    group = task.create_group(name)
    group.attrs["step"] = preview.step
    group.attrs["words"] = preview.words
    for field, image in preview.predicted.items():
        group.create_dataset(f"predicted/{field}", data=image, compression="gzip")
