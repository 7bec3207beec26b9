"""Frames where a layout says that they are: one dataset or several, with axes in one of the known orders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.doors.npz_members import NpzMember
from rehearsal_kit.data.scans.doors.scan_file import Dataset, ScanFile
from rehearsal_kit.data.scans.frames.raw_frames import AXES, FrameBlock, RawFrames


def frames_at(file: ScanFile, *places: str, axes: str | None = None) -> RawFrames:
    """The frames in these datasets of a file, one after the other.

    axes: one of `AXES`; None: "frame row column", or "slow fast row column" where there are four.

    Raises:
        ScanError: no dataset, none of real numbers, of another number of axes, or frames that differ.
    """
    return frames_in([(file, at) for at in places], axes=axes)


def frames_in(places: Iterable[tuple[ScanFile, str]], *, axes: str | None = None) -> RawFrames:
    """The same where the datasets lie in several files, each of which is open when its turn comes."""
    first = None
    blocks, shapes, types, size = [], set(), [], 0
    found_axes = axes
    for file, at in places:
        first = first or (file.path, at)
        dataset = file.dataset(at)
        found_axes = axes or (AXES[2] if dataset.ndim == 4 else AXES[0])
        count, shape = _measured(file, at, dataset, axes=found_axes)
        blocks.append(FrameBlock(*_place(file, at, dataset), count))
        shapes.add(shape)
        types.append(dataset.dtype)
        size += dataset.nbytes
    if first is None:
        raise ValueError("frames are looked for in no dataset")
    if len(shapes) > 1 or len(set(types)) > 1:
        kinds = ", ".join(sorted(set(map(str, types))))
        raise ScanError(
            f"{first[0]}: {first[1]} and what follows it hold frames that differ: {kinds} of shapes "
            f"{', '.join(map(str, sorted(shapes)))}; a scan has frames of one kind. Take the others out of "
            "it."
        )
    return RawFrames(
        blocks=tuple(blocks),
        stored_shape=shapes.pop(),
        dtype=types[0],
        nbytes=size,
        axes=found_axes or AXES[0],
    )


def _measured(file: ScanFile, at: str, dataset: Dataset, *, axes: str) -> tuple[int, tuple[int, int]]:
    """Number and shape of the frames in a dataset."""
    names = axes.split()
    if dataset.ndim != len(names) or dataset.dtype.kind not in "iuf" or 0 in dataset.shape:
        raise ScanError(
            f"{file.path}: {at} is {dataset.dtype} of shape {dataset.shape}; a scan needs real counts "
            f"({', '.join(names)})."
        )
    sizes = dict(zip(names, dataset.shape, strict=True))
    count = sizes.get("frame", sizes.get("slow", 1) * sizes.get("fast", 1))
    return count, (sizes["row"], sizes["column"])


def _place(file: ScanFile, at: str, dataset: Dataset) -> tuple[Path, str]:
    """The file and the name in it where a dataset really lies, behind all links."""
    if isinstance(dataset, NpzMember):
        return file.place_of(file.path.absolute()), at
    assert isinstance(dataset, h5py.Dataset)  # noqa: S101 - for the type checker
    path = file.place_of(Path(dataset.file.filename).absolute())
    # In its own file it is called as people look for it, elsewhere as it is called there.
    return path, at if path == file.place_of(file.path.absolute()) else str(dataset.name)
