"""A scan: one acquisition on disk, described lazily and opened by whoever reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ObjectPlace
from rehearsal_kit.data.scans.doors.read_ahead import read_ahead
from rehearsal_kit.data.scans.doors.scan_file import ScanFile, opened_scan
from rehearsal_kit.data.scans.frames.corrections import Corrections
from rehearsal_kit.data.scans.frames.filling import Filling
from rehearsal_kit.data.scans.frames.markers import markers_in
from rehearsal_kit.data.scans.frames.raw_frames import RawFrames, runs_of
from rehearsal_kit.data.scans.objects import object_of

Floats = NDArray[np.float64]
Frames = NDArray[np.float32]

BLOCK_BYTES = 2**22
"""Frames that are read at once: while some are made counts of, the next ones are read."""


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
    counts: RawFrames
    """Where its frames lie, and how they are cut and turned."""
    corrections: Corrections = field(default_factory=Corrections, repr=False)
    """What is made of what is stored, so that it is counts."""
    object_place: ObjectPlace | None = None
    """The reconstructed object; None if there is none that can be used."""
    no_object: str = "no reconstruction: nothing to train on"
    """Why there is no object."""
    positions_px: Floats = field(repr=False)
    """Centre of each patch (frame, 2), row and column, in pixels of the object array."""
    translations_m: Floats | None = field(default=None, repr=False)
    """Displacement of the probe over the object (frame, 2), m; None if the file holds pixels only."""
    bad_pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """Pixels of a frame in which the detector cannot be trusted, counted row by row: few, unlike a mask."""
    energy_ev: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    """wavelength x distance / (pixels x detector pixel), as for the far field; None if not known."""
    centre_px: tuple[float, float] | None = None
    """Where the beam hits the detector, row and column as stored; None where nobody had to know."""
    simulated: bool = False
    """Whether the counts were computed rather than measured."""
    others: tuple[Path, ...] = ()
    """Files that it is spread over, beside `path`."""
    roots: tuple[str, ...] = ()
    """Folders that its links may lead to, beside its own."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Frames or positions of the files that are not used, by what is the matter with them."""
    found: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where each field comes from, as people would look for it."""

    def __len__(self) -> int:
        return len(self.positions_px)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Rows and columns of one frame."""
        return self.counts.shape

    @property
    def good_pixels(self) -> NDArray[np.bool_]:
        """True where the detector can be trusted (row, column)."""
        good = np.ones(self.frame_shape, bool)
        good.ravel()[self.bad_pixels] = False
        return good

    @property
    def has_object(self) -> bool:
        """Whether the file holds a reconstruction whose place under the scan is known."""
        return self.object_place is not None

    @property
    def object_shape(self) -> tuple[int, int] | None:
        """Rows and columns of the reconstruction; None if there is none that can be used."""
        return None if self.object_place is None else self.object_place.shape

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

    def opened(self, file: ScanFile | None = None) -> AbstractContextManager[ScanFile]:
        """Its file, for several reads; `file` itself where that is open already, and stays so."""
        return opened_scan(self.path, self.roots) if file is None else nullcontext(file)

    def frames(self, indices: Sequence[int] | NDArray[np.int64], *, file: ScanFile | None = None) -> Frames:
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
        with self.opened(file) as source:
            reads = [
                (first, last, partial(self.counts.read, source, first, last))
                for run in runs_of(numbers)
                for first, last in _blocks(*run, each=max(1, BLOCK_BYTES // (counts[:1].nbytes or 1)))
            ]
            for (first, last, _), block in zip(reads, read_ahead([read for *_, read in reads]), strict=True):
                place = slice(*np.searchsorted(numbers, (first, last)))
                self._take(block, counts[place], numbers=numbers[place], good=good)
        return counts if np.array_equal(numbers, wanted) else counts[back]

    def _take(
        self, block: NDArray[Any], counts: Frames, *, numbers: NDArray[np.int64], good: NDArray[np.bool_]
    ) -> None:
        """Make counts of what was read; `numbers` are those of the frames in the scan."""
        block = self.corrections.unwrapped(block)
        counts[:] = block
        marked = markers_in(block, good)
        self.corrections.make_counts(counts)
        self._require_counts(counts, numbers, good)
        self.corrections.level(counts)
        self._filling.fill(counts, marked)
        self.corrections.normalise(counts, numbers)

    @cached_property
    def _filling(self) -> Filling:
        return Filling(self.good_pixels)

    def object(self, *, file: ScanFile | None = None) -> NDArray[np.complex64]:
        """The reconstruction (row, column). file: the scan's own, where it is open already.

        Raises:
            ScanError: the file has none, none whose place is known, or it holds values that are not finite.
        """
        if self.object_place is None:
            raise ScanError(f"{self.path}: {self.no_object}.")
        with self.opened(file) as source:
            return object_of(source, self.object_place, self.positions_px)

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

    def _require_counts(self, counts: Frames, numbers: NDArray[np.int64], good: NDArray[np.bool_]) -> None:
        if counts.size and counts.min() >= 0 and counts.max() < np.inf:  # NaN compares false
            return
        # NaN compares false, so this catches it together with the negative ones.
        wrong = ~((counts >= 0) & (counts < np.inf)) & good
        if wrong.any():
            at, row, column = np.argwhere(wrong)[0]
            raise ScanError(
                f"{self.path}: frame {numbers[at]} of {self.counts.where} has {counts[at, row, column]} at "
                f"row {row}, column {column}; counts must be finite and not negative. Mask this pixel, or "
                "repair the frame."
            )


def _blocks(first: int, last: int, *, each: int) -> Iterator[tuple[int, int]]:
    """The same in parts of so many frames."""
    for begin in range(first, last, each):
        yield begin, min(begin + each, last)
