"""The frames of a scan as they lie in its files, and the way from there to a square around the beam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.doors.npz_members import NpzMember
from rehearsal_kit.data.scans.doors.scan_file import Dataset, ScanFile
from rehearsal_kit.data.scans.frames.orientation import oriented, oriented_shape

AXES = ("frame row column", "row column frame", "slow fast row column", "row column")
"""How the axes of a dataset of frames may lie: the second is MATLAB's, the third that of a raster, and the
last one is a dataset that holds one frame."""


@dataclass(frozen=True)
class Window:
    """The square that is cut out of each frame, in pixels of the detector as stored."""

    row: int
    column: int
    side: int


@dataclass(frozen=True)
class FrameBlock:
    """A dataset of frames in one file."""

    path: Path
    at: str
    count: int
    """Frames in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RawFrames:
    """Where frames lie, and how. Nothing here changes a count; `Scan.frames` does that afterwards."""

    blocks: tuple[FrameBlock, ...]
    """One after the other."""
    stored_shape: tuple[int, int]
    """Rows and columns of a frame as stored."""
    dtype: np.dtype[Any]
    nbytes: int
    """Bytes of all frames."""
    axes: str = AXES[0]
    chosen: NDArray[np.int64] | None = field(default=None, repr=False)
    """The stored frame (frame,) that belongs to each position; None: the frames are as many as positions."""
    corner: bool = False
    """Whether DC lies at the corner, as after `ifftshift`; it is moved to the centre."""
    window: Window | None = None
    """What is cut out of a frame, of one whose DC lies in the centre; None: all of it."""
    orientation: int = 0
    """How frames are turned afterwards; see orientation.py."""

    def __len__(self) -> int:
        return self.stored if self.chosen is None else len(self.chosen)

    @property
    def stored(self) -> int:
        """Frames in the files, those included that are not chosen."""
        return sum(block.count for block in self.blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame as it comes out."""
        cut = self.stored_shape if self.window is None else (self.window.side,) * 2
        return oriented_shape(cut, self.orientation)

    @property
    def where(self) -> str:
        """The dataset, or the first of several, as people would look for it."""
        first = self.blocks[0].at
        return first if len(self.blocks) == 1 else f"{first} and {len(self.blocks) - 1} more"

    def whole(self) -> RawFrames:
        """The same without a window, as stored."""
        return replace(self, window=None, orientation=0)

    def placed(self, image: NDArray[Any]) -> NDArray[Any]:
        """An image of the detector, (row, column) as stored, cut and turned like the frames."""
        return self._finished(image, shifted=self.corner)

    def read(self, file: ScanFile, first: int, last: int) -> NDArray[Any]:
        """Frames from the first to before the last (frame, row, column), of the dtype as stored.

        Raises:
            ScanError: one that cannot be read; names the file, the dataset and the frame.
        """
        numbers = np.arange(first, last) if self.chosen is None else self.chosen[first:last]
        parts = [self._run(file, *run) for run in runs_of(numbers)]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._finished(found, shifted=self.corner)

    def _finished(self, frames: NDArray[Any], *, shifted: bool) -> NDArray[Any]:
        if shifted:
            frames = np.fft.fftshift(frames, axes=(-2, -1))
        cut = self.window
        if cut is not None and frames.shape[-2:] == self.stored_shape:
            frames = frames[..., cut.row : cut.row + cut.side, cut.column : cut.column + cut.side]
        return oriented(frames, self.orientation)

    def _run(self, file: ScanFile, first: int, last: int) -> NDArray[Any]:
        """Consecutive stored frames, of all blocks that they lie in."""
        parts, begin = [], 0
        for block in self.blocks:
            low, high = max(first - begin, 0), min(last - begin, block.count)
            if low < high:
                source = file.other(block.path).dataset(block.at)
                parts.append(self._of_block(source, block, rows=(low, high), begin=begin))
            begin += block.count
        if sum(map(len, parts)) != last - first:
            raise ScanError(f"{file.path}: has {begin} frames; {first} to {last - 1} were asked for.")
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _of_block(
        self, source: Dataset, block: FrameBlock, *, rows: tuple[int, int], begin: int
    ) -> NDArray[Any]:
        low, high = rows
        try:
            return self._values(source, low, high)
        except OSError as error:
            if high - low > 1:  # One frame at a time, to name the one that fails.
                for number in range(low, high):
                    self._of_block(source, block, rows=(number, number + 1), begin=begin)
            raise ScanError(
                f"{block.path}: frame {begin + low} of {block.at} cannot be read: {error}. The file is "
                "damaged, or its compression filter is not known to the package hdf5plugin."
            ) from error

    def _values(self, source: Dataset, low: int, high: int) -> NDArray[Any]:
        """Frames of one dataset, only the window of them where that lies in the file as it is."""
        cut: tuple[slice, ...] = ()
        if self.window is not None and not self.corner:
            row, column, side = self.window.row, self.window.column, self.window.side
            cut = (slice(row, row + side), slice(column, column + side))
        if self.axes == "row column":
            return np.asarray(source[cut or ()])[None]
        if self.axes == "row column frame":
            rows, columns = cut or (slice(None), slice(None))
            # An archive has to be read whole for that: every frame has a part in each of its rows.
            all_of_it = source[()] if isinstance(source, NpzMember) else source
            return np.moveaxis(np.asarray(all_of_it[rows, columns, low:high]), -1, 0)
        if self.axes == "slow fast row column":
            fast = source.shape[1]
            lines = [
                np.asarray(
                    source[(line, slice(max(low - line * fast, 0), min(high - line * fast, fast)), *cut)]
                )
                for line in range(low // fast, -(-high // fast))
            ]
            return lines[0] if len(lines) == 1 else np.concatenate(lines)
        found: NDArray[Any] = source[(slice(low, high), *cut)] if cut else source[low:high]
        return found


def runs_of(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and one past the last of every run of consecutive numbers: one read each."""
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1
