"""A scan: one acquisition on disk, described lazily and opened by whoever reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.hdf5 import dataset_of, opened_once, values_of
from rehearsal_kit.data.scans.markers import markers_in

Floats = NDArray[np.float64]
Frames = NDArray[np.float32]


def patch_corners(positions_px: Floats, side: int) -> NDArray[np.int64]:
    """First row and column of the patch of `side` pixels around each centre, (patch, 2).

    The centre of a patch lies `side / 2` pixels after its corner; centres between pixels are rounded.
    """
    return np.floor(positions_px - side / 2 + 0.5).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What a file tells about one acquisition. Holds no open file.

    Every read opens and closes it, unless it is given the file where that is open already.
    """

    path: Path
    layout: str
    """Layout of the file, for example "cxi"."""
    frames_at: str
    """Path of the dataset of counts (frame, row, column) in the file."""
    object_at: str | None = None
    """Path of the reconstructed object (row, column) in the file; None if it has none that can be used."""
    no_object: str = "no reconstruction: nothing to train on"
    """Why `object_at` is None."""
    frame_shape: tuple[int, int]
    """Rows and columns of one frame."""
    object_shape: tuple[int, int] | None = None
    positions_px: Floats = field(repr=False)
    """Centre of each patch (frame, 2), row and column, in pixels of the object array."""
    translations_m: Floats | None = field(default=None, repr=False)
    """Displacement of the probe over the object (frame, 2), m; None if the file holds pixels only."""
    bad_pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """Pixels in which the detector cannot be trusted, counted row by row: few, unlike a mask."""
    energy_ev: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    """wavelength x distance / (pixels x detector pixel), as for the far field; None if not known."""
    simulated: bool = False
    """Whether the counts were computed rather than measured."""

    def __len__(self) -> int:
        return len(self.positions_px)

    @property
    def good_pixels(self) -> NDArray[np.bool_]:
        """True where the detector can be trusted (row, column)."""
        good = np.ones(self.frame_shape, bool)
        good.ravel()[self.bad_pixels] = False
        return good

    @property
    def has_object(self) -> bool:
        """Whether the file holds a reconstruction whose place under the scan is known."""
        return self.object_at is not None

    @property
    def positions_m(self) -> Floats:
        """Displacement of the probe over the object (frame, 2), row and column, in metres.

        Raises:
            ScanError: the file gives positions in pixels and no pixel size.
        """
        if self.translations_m is None:
            raise ScanError(
                f"{self.path}: positions are given in pixels and the pixel size is unknown, so there are no "
                "positions in metres; use positions_px."
            )
        return self.translations_m

    def frames(self, indices: Sequence[int] | NDArray[np.int64], *, file: h5py.File | None = None) -> Frames:
        """Counts (frame, row, column), DC in the centre, bad pixels filled from their neighbours.

        A pixel that holds the largest number of its type in one of the frames is bad in that frame. A frame
        without any good pixel has no counts. file: the scan's own, where it is open already.

        Raises:
            ScanError: an index outside the scan, a chunk that cannot be read, a count in a good pixel that
                is negative or not finite; names the file, the dataset and the frame.
        """
        wanted = self._checked(indices)
        numbers, back = np.unique(wanted, return_inverse=True)
        counts = np.empty((len(numbers), *self.frame_shape), np.float32)
        good = self.good_pixels
        with opened_once(self.path, file) as source:
            dataset = dataset_of(source, self.frames_at)
            for first, last in _runs(numbers):
                place = slice(*np.searchsorted(numbers, (first, last)))
                block = self._read(dataset, first, last)
                counts[place] = block
                self._require_counts(counts[place], numbers[place], good)
                _fill(counts[place], good, markers_in(block))
        ordered: Frames = counts[back]
        return ordered

    def object(self, *, file: h5py.File | None = None) -> NDArray[np.complex64]:
        """The reconstruction (row, column). file: the scan's own, where it is open already.

        Raises:
            ScanError: the file has none, none whose place is known, or it holds values that are not finite.
        """
        if self.object_at is None:
            raise ScanError(f"{self.path}: {self.no_object}.")
        with opened_once(self.path, file) as source:
            shapes = () if self.object_shape is None else (self.object_shape,)
            values = values_of(source, self.object_at, shapes=shapes, kinds="ciuf").astype(np.complex64)
        if not np.isfinite(values).all():
            raise ScanError(f"{self.path}: {self.object_at} holds NaN or infinite values; mend or remove it.")
        return values

    def _checked(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        numbers = np.asarray(indices)
        if numbers.size == 0:
            return np.empty(0, np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ScanError(
                f"{self.path}: frames were asked for by {numbers.dtype} of shape {numbers.shape}; "
                "give a list of whole numbers."
            )
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise ScanError(
                f"{self.path}: frames {numbers.min()} to {numbers.max()} were asked for; the scan has "
                f"frames 0 to {len(self) - 1}."
            )
        return numbers.astype(np.int64)

    def _read(self, dataset: h5py.Dataset, first: int, last: int) -> NDArray[Any]:
        try:
            block: NDArray[Any] = dataset[first:last]
        except OSError as error:
            if last - first > 1:  # One frame at a time, to name the one that fails.
                for number in range(first, last):
                    self._read(dataset, number, number + 1)
            raise ScanError(
                f"{self.path}: frame {first} of {self.frames_at} cannot be read: {error}. The file is "
                "damaged, or its compression filter is not installed (many detectors need the package "
                "hdf5plugin)."
            ) from error
        return block

    def _require_counts(self, counts: Frames, numbers: NDArray[np.int64], good: NDArray[np.bool_]) -> None:
        # NaN compares false, so this catches it together with the negative ones.
        wrong = ~((counts >= 0) & (counts < np.inf)) & good
        if wrong.any():
            at, row, column = np.argwhere(wrong)[0]
            raise ScanError(
                f"{self.path}: frame {numbers[at]} of {self.frames_at} has {counts[at, row, column]} at row "
                f"{row}, column {column}; counts must be finite and not negative. Mask this pixel, or "
                "repair the frame."
            )


def _runs(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and one past the last of every run of consecutive numbers: one read each."""
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1


def _fill(counts: Frames, good: NDArray[np.bool_], marked: NDArray[np.bool_] | None) -> None:
    """Set bad pixels to the median of the good ones in 5 x 5 pixels around, in place.

    marked: pixels (frame, row, column) that are bad in one frame only.
    """
    alone = np.zeros(len(counts), bool) if marked is None else (marked & good).any(axis=(1, 2))
    for each in np.flatnonzero(alone):
        assert marked is not None  # noqa: S101 - for the type checker
        _fill_alike(counts[each : each + 1], good & ~marked[each])
    if alone.any():
        others = counts[~alone]
        _fill_alike(others, good)
        counts[~alone] = others
    else:
        _fill_alike(counts, good)


def _fill_alike(counts: Frames, good: NDArray[np.bool_]) -> None:
    """Fill frames that have the same bad pixels, wide gaps from their rim inwards."""
    known = good.copy()
    if not known.any():
        counts[:] = 0
        return
    while not known.all():
        near = np.pad(known, 2)
        rows, columns = np.nonzero(~known)
        around = _neighbours(rows, columns)
        has_known = near[around].any(axis=1)
        rows, columns = rows[has_known], columns[has_known]
        around = tuple(axis[has_known] for axis in around)
        for frame in counts:
            values = np.where(near[around], np.pad(frame, 2)[around], np.nan)
            frame[rows, columns] = np.nanmedian(values, axis=1)
        known[rows, columns] = True


def _neighbours(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Rows and columns (pixel, 25) of the 5 x 5 neighbourhood in an array padded by 2."""
    row_shift, column_shift = np.divmod(np.arange(25), 5)
    return rows[:, None] + row_shift, columns[:, None] + column_shift
