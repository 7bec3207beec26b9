"""One held-out sample of a task, what is true of it, what the network makes of it; and the files of a run.

A run has one small HDF5 file for every task that was trained, so that keeping previews never costs more than
they are, however many there are already.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.files import written_whole

Wanted = tuple["int | None", bool]
"""What somebody looks at: a task, None for the newest, and whether the weights in training are to predict
instead of the average that is kept of them."""
Image = NDArray[np.float32]
"""float32 (row, column)."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """All images are float32 (row, column); phases in rad."""

    task: int
    step: int
    name: str
    """Name of the field that goes into the network."""
    input: Image
    """The input as the network sees it; colours are averaged."""
    truth: Mapping[str, Image]
    """The targets that are images, by field."""
    predicted: Mapping[str, Image]
    """The outputs that meet them, under the same names."""
    words: str
    """What is true and what was predicted where that is a class; else empty."""
    trained: bool | None = None
    """Whether the weights in training predicted, or the average that is kept of them; None where none is
    kept, and in files, in which there is only what the network that predicts has made."""


def append_previews(folder: Path, previews: Iterable[Preview], *, after: int, part: int = 0) -> None:
    """Add previews to the file of what was made after this task: `task_<j>` with `predicted` and `truth`.

    What was there of the same task after the same one is replaced. The file is whole at every moment.
    part: of very many tasks, those that lie in a file together.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / (f"after_{after:06d}_{part}.h5" if part else f"after_{after:06d}.h5")
    with written_whole(path) as partial:
        known = path.exists()
        if known:
            shutil.copyfile(path, partial)
        with h5py.File(partial, "r+" if known else "w") as file:
            for preview in previews:
                _append(file, preview)


def read_previews(folder: Path) -> Iterator[tuple[int, Preview]]:
    """All that a run has kept, with the task after which each was made, the newest task first.

    A file that cannot be read is left out, with a warning.
    """
    numbers = {path: re.fullmatch(r"after_(\d{6,})(_\d+)?\.h5", path.name) for path in folder.glob("*.h5")}
    found = [(int(match[1]), path) for path, match in numbers.items() if match]
    for after, path in sorted(found, reverse=True):
        try:
            with h5py.File(path, "r") as file:
                kept = [_read(group) for group in file.values()]
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            warnings.warn(f"{path} cannot be read: {error}; its pictures are left out.", stacklevel=2)
            continue
        yield from ((after, preview) for preview in kept)


def _append(file: h5py.File, preview: Preview) -> None:
    name = f"task_{preview.task}"
    if name in file:  # the run has come by here before
        del file[name]
    group = file.create_group(name)
    group.attrs.update(task=preview.task, step=preview.step, words=preview.words)
    group.create_dataset("input", data=preview.input, compression="gzip").attrs["name"] = preview.name
    for part, images in (("truth", preview.truth), ("predicted", preview.predicted)):
        for field, image in images.items():
            group.create_dataset(f"{part}/{field}", data=image, compression="gzip")


def _read(group: h5py.Group) -> Preview:
    return Preview(
        task=int(group.attrs["task"]),
        step=int(group.attrs["step"]),
        name=str(group["input"].attrs["name"]),
        input=np.asarray(group["input"], np.float32),
        truth=_images(group, "truth"),
        predicted=_images(group, "predicted"),
        words=str(group.attrs["words"]),
    )


def _images(group: h5py.Group, part: str) -> dict[str, Image]:
    """Images of a part by name of the field; empty where only classes are predicted."""
    return {field: np.asarray(image, np.float32) for field, image in group.get(part, {}).items()}
