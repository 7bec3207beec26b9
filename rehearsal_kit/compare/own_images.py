"""A stream of somebody's own labelled images, from one file of arrays, for `compare --stream FILE.npz`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.digests import DIGITS
from rehearsal_kit.base.errors import DatasetError
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.compare.streams import CLASSES, CompareStream, Place
from rehearsal_kit.data.scans.doors.arrays import arrays_of
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.record.commands import Arrived

SUFFIX = ".npz"
HELD_OUT = 7
"""Every so many-th sample of a class is for tests, where the file has none of its own."""
SMALLEST = 8
"""Rows and columns that the networks need."""


@dataclass(frozen=True)
class OwnImages:
    """Labelled images as a file has them, checked, in training and test samples."""

    images: NDArray[np.float32]
    """float32 (sample, channel, row, column)."""
    labels: NDArray[np.int64]
    """int64 (sample,), from 0."""
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]

    @property
    def digest(self) -> str:
        """Fingerprint of all of it."""
        parts = (self.images, self.labels, self.test_images, self.test_labels)
        found = hashlib.sha256()
        for part in parts:
            found.update(str(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:DIGITS]

    @staticmethod
    def read(path: Path) -> OwnImages:
        """Arrays `images`, (sample, row, column) or (sample, channel, row, column), and `labels`, (sample,).

        `test_images` and `test_labels` are the test samples; else every seventh of each class is one, and
        one at least. Values go into the network as they are. DatasetError, with what came, where the arrays
        are others; ScanError or NotYetError where the file cannot be read.
        """
        arrays = arrays_of(path)
        images, labels = _pair(path, arrays)
        if int(labels.max()) >= len(labels):
            raise DatasetError(
                f"{path} has labels up to {labels.max()} for {len(labels)} images; number the classes from 0."
            )
        if "test_images" in arrays or "test_labels" in arrays:
            own = OwnImages(images, labels, *_pair(path, arrays, of="test_"))
            if own.test_images.shape[1:] != images.shape[1:]:
                raise DatasetError(
                    f"{path} has images {images.shape[1:]} and test_images {own.test_images.shape[1:]} "
                    "(channel, row, column); they must be alike."
                )
            return own
        tested = np.zeros(len(labels), dtype=bool)
        for each in np.unique(labels):
            mine = np.flatnonzero(labels == each)
            if len(mine) == 1:
                raise DatasetError(
                    f"{path} has one image of class {each}; a class needs two at least, one of them for "
                    "tests. Give more, or test_images and test_labels."
                )
            tested[mine[HELD_OUT - 1 :: HELD_OUT] if len(mine) >= HELD_OUT else mine[-1:]] = True
        return OwnImages(images[~tested], labels[~tested], images[tested], labels[tested])


def own_stream(path: Path, *, classes_per_task: int) -> CompareStream:
    """A class-incremental stream of the images of this file; settings are those of MNIST's subset.

    DatasetError for a file without such arrays.
    """
    own = OwnImages.read(path)
    channels, classes = own.images.shape[1], int(max(own.labels.max(), own.test_labels.max())) + 1

    def lay_out(place: Place) -> Sequence[Arrived]:
        tasks = split_classes(
            torch.from_numpy(own.images),
            torch.from_numpy(own.labels),
            classes_per_task=classes_per_task,
            test=(torch.from_numpy(own.test_images), torch.from_numpy(own.test_labels)),
        )
        return [write_task(task, place.folder / f"{number}.h5") for number, task in enumerate(tasks)]

    return CompareStream(
        name=path.stem,
        title=f"{path.name}, {classes_per_task} classes a task",
        measure=CLASSES,
        shape=own.images.shape[1:],
        small=lambda seed: ConvNet(channels=channels, classes=classes, seed=seed),
        full=lambda seed: ResNet(depth=18, classes=classes, channels=channels, stem="small", seed=seed),
        training=Training(batch=32, epochs=4, learning_rate=1e-3),
        rehearsal=Rehearsal(representatives=8, distillation=8, candidates=16),
        alpha=0.1,
        source=f"{own.digest}, {classes_per_task} classes a task",
        lay_out=lay_out,
    )


def _pair(
    path: Path, arrays: Mapping[str, NDArray[Any]], *, of: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images and labels, checked; of: what stands before both names."""
    images, labels = arrays.get(f"{of}images"), arrays.get(f"{of}labels")
    fits = (
        images is not None
        and labels is not None
        and images.ndim in (3, 4)
        and images.dtype.kind in "iuf"
        and labels.dtype.kind in "iu"
        and labels.shape == images.shape[:1]
        and len(images) > 0
        and min(images.shape[-2:]) >= SMALLEST
        and int(labels.min()) >= 0
        and bool((np.abs(images) <= np.finfo(np.float32).max).all())  # also false of what is no number
    )
    if not fits or images is None or labels is None:
        came = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise DatasetError(
            f"{path} has {came or 'nothing'}; a stream needs {of}images of finite numbers, (sample, row, "
            f"column) or (sample, channel, row, column) with {SMALLEST} or more rows and columns, and "
            f"{of}labels of whole numbers from 0, (sample,)."
        )
    whole = images.astype(np.float32)
    return (whole[:, None] if whole.ndim == 3 else whole), labels.astype(np.int64)
