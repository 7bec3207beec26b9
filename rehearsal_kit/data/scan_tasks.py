"""A scan as a task: its frames split by region of the sample.

Neighbouring frames see the same part of the sample, so a random split would test on what was trained on.
Here no held-out target overlaps a training target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.experience import NUMBER, SPLITS, Indices
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan import Scan, patch_corners
from rehearsal_kit.record.commands import Arrived, Box

SHARE_HELD_OUT = 0.2
"""Share of the frames whose targets lie in the held-out strip, about."""


FRAME_BYTES = 2**28
"""Frames that are read at once take no more than this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanExperience:
    """The data that a scan brings: disjoint sets of its frames, as sorted indices."""

    inputs = "diffraction"
    group = None

    name: str
    scan: Scan
    preparation: Preparation
    training: Indices = field(repr=False)
    watched: Indices = field(repr=False)
    """Plotted while the run goes on."""
    test: Indices = field(repr=False)
    """Frames for final tables only."""
    unit: complex
    """The object is divided by it: median amplitude 1, circular-mean phase 0 where patches lie."""

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of a frame: rows and columns of the detector."""
        return self.scan.frame_shape

    @property
    def path(self) -> Path:
        """The file of the scan."""
        return self.scan.path

    @property
    def simulated(self) -> bool:
        """Whether the counts were computed rather than measured."""
        return self.scan.simulated

    @property
    def skipped(self) -> int:
        """Frames in none of the sets: their target leaves the object or touches another set's."""
        return len(self.scan) - len(self.training) - len(self.watched) - len(self.test)

    def count(self, split: str) -> int:
        """Frames of a split."""
        return len(self._frames(split))

    def load(self, split: str, places: Indices) -> dict[str, torch.Tensor]:
        """Prepared samples of these frames of a split, in their order.

        The fields are "diffraction", "amplitude" and "phase" (rad, in (-pi, pi]), each float32
        (sample, 1, row, column), and "number", int64 (sample,), the index of each frame. Frames without
        beam, with no counts at all, are left out, so there may be fewer samples than places.

        Raises:
            ScanError: a frame that cannot be read, or with counts that are negative or not finite.
        """
        indices = self._frames(split)[places]
        with self.scan.opened() as file:
            diffraction, lit = self._diffraction(indices, file)
            patches = _patches(self, indices[lit], file)
        # numpy's angle is in [-pi, pi]; the cut belongs to one side only.
        phase = np.angle(patches)
        phase[phase <= -np.float32(np.pi)] = np.pi
        return {
            "diffraction": diffraction,
            "amplitude": torch.from_numpy(np.abs(patches))[:, None],
            "phase": torch.from_numpy(phase)[:, None],
            NUMBER: torch.from_numpy(indices[lit]),
        }

    def _diffraction(self, indices: Indices, file: ScanFile) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """What the network is given of those frames that have any counts, and which they are.

        Frames are read a part at a time: those of a large detector would not fit into memory together.
        """
        rows, columns = self.scan.frame_shape
        each = max(1, FRAME_BYTES // (4 * rows * columns))
        prepared, lit = [], np.zeros(len(indices), bool)
        for begin in range(0, max(1, len(indices)), each):
            frames = self.scan.frames(indices[begin : begin + each], file=file)
            lit[begin : begin + each] = frames.any(axis=(1, 2))
            prepared.append(self.preparation.apply(frames[lit[begin : begin + each]]))
        return torch.cat(prepared), lit

    def _frames(self, split: str) -> Indices:
        frames: Indices = getattr(self, split)
        return frames


def split_scan(
    scan: Scan, arrived: Arrived, preparation: Preparation, *, file: ScanFile | None = None
) -> ScanExperience:
    """Split a scan into training, watched and test frames; reads its object, no frames.

    Training targets (`preparation.size` pixels around the centre) lie in `arrived.region` and do not touch
    the box that is held out. Targets wholly inside that box are held out: one half watched, one half
    tested, on two sides of a line that neither crosses. file: the scan's own, where it is open already.

    Raises:
        ScanError: no object, frames that do not fit the preparation, or a set that is empty.
    """
    preparation.require_fit(scan)
    image = scan.object(file=file)
    size = preparation.size
    corners = patch_corners(scan.positions_px, size)
    inside = _within(corners, size, (0, image.shape[0], 0, image.shape[1]))
    if not inside.any():
        raise ScanError(
            f"{scan.path}: no target of {size} pixels lies wholly in the object of {image.shape}; choose a "
            "smaller size in Preparation."
        )
    box = arrived.held_out or _lowest_rows(corners[inside])
    held_out = np.flatnonzero(inside & _within(corners, size, box))
    training = inside & ~_touches(corners, size, box)
    if arrived.region is not None:
        training &= _within(corners, size, arrived.region)
    watched, test = _halves(corners, size, held_out)
    experience = ScanExperience(
        name=arrived.name,
        scan=scan,
        preparation=preparation,
        training=np.flatnonzero(training),
        watched=watched,
        test=test,
        unit=_unit(scan.path, image, corners=corners[inside], size=size),
    )
    _require_samples(experience, box, arrived.region)
    return experience


def regions(
    path: str | Path, count: int, *, size: int = 64, reading: ScanReading | None = None
) -> list[Arrived]:
    """One scan as a stream of `count` tasks: bands of columns, and one held-out strip common to all.

    The strip is the lowest rows, as for a scan that is one task. Each band holds about equally many frames;
    neighbouring bands overlap by `size`, so that no frame is lost between them.

    Args:
        path: a scan with an object.
        count: of tasks.
        size: pixels of a side of a target, as in Preparation.
        reading: what its file does not tell, as in Preparation.

    Raises:
        ScanError: fewer frames than tasks, or no object.
    """
    scan = open_scan(path, reading=reading)
    rows, columns = scan.object().shape
    corners = patch_corners(scan.positions_px, size)
    corners = corners[_within(corners, size, (0, rows, 0, columns))]
    if not 1 <= count <= len(corners):
        raise ScanError(
            f"{path}: {count} regions were asked for; the scan has {len(corners)} frames to share out."
        )
    strip = _lowest_rows(corners)
    left = corners[~_touches(corners, size, strip), 1]
    edges = np.quantile(left, np.linspace(0, 1, count + 1))
    return [
        Arrived(
            name=f"{Path(path).stem} {chr(ord('a') + number) if count <= 26 else number}",
            path=str(path),
            region=(0.0, strip[0], float(np.floor(first)), float(np.floor(last)) + size),
            held_out=(strip[0], float(rows), 0.0, float(columns)),
        )
        for number, (first, last) in enumerate(pairwise(edges))
    ]


def _within(corners: Indices, size: int, box: Box) -> NDArray[np.bool_]:
    """Whether targets lie wholly in the box."""
    (row, column) = corners.T
    inside: NDArray[np.bool_] = (
        (row >= box[0]) & (row + size <= box[1]) & (column >= box[2]) & (column + size <= box[3])
    )
    return inside


def _touches(corners: Indices, size: int, box: Box) -> NDArray[np.bool_]:
    """Whether targets share a pixel with the box."""
    (row, column) = corners.T
    touches: NDArray[np.bool_] = (
        (row < box[1]) & (row + size > box[0]) & (column < box[3]) & (column + size > box[2])
    )
    return touches


def _lowest_rows(corners: Indices) -> Box:
    """The strip at the bottom (largest row numbers) that holds about SHARE_HELD_OUT of the targets."""
    return (float(np.ceil(np.quantile(corners[:, 0], 1 - SHARE_HELD_OUT))), np.inf, -np.inf, np.inf)


def _halves(corners: Indices, size: int, held_out: Indices) -> tuple[Indices, Indices]:
    """Held-out frames on the two sides of a line across the longer way; those on the line are left out."""
    if len(held_out) == 0:
        return held_out, held_out
    low, high = corners[held_out].min(axis=0), corners[held_out].max(axis=0)
    axis = int(np.argmax(high - low))
    line = (low[axis] + high[axis] + size) / 2
    begins = corners[held_out, axis]
    return held_out[begins + size <= line], held_out[begins >= line]


def _unit(path: Path, image: NDArray[np.complex64], *, corners: Indices, size: int) -> complex:
    covered = np.zeros(image.shape, bool)
    for row, column in corners:
        covered[row : row + size, column : column + size] = True
    seen = image[covered]
    amplitude = np.abs(seen)
    if np.median(amplitude) == 0:
        raise ScanError(f"{path}: the object is zero where the patches lie; its reconstruction has failed.")
    turn = (seen[amplitude > 0] / amplitude[amplitude > 0]).mean()
    return complex(np.median(amplitude) * turn / abs(turn))


def _patches(experience: ScanExperience, indices: Indices, file: ScanFile) -> NDArray[np.complex64]:
    size = experience.preparation.size
    image = experience.scan.object(file=file) / np.complex64(experience.unit)
    patches = np.empty((len(indices), size, size), np.complex64)
    corners = patch_corners(experience.scan.positions_px[indices], size)
    for patch, (row, column) in zip(patches, corners, strict=True):
        patch[:] = image[row : row + size, column : column + size]
    return patches


def _require_samples(experience: ScanExperience, box: Box, region: Box | None) -> None:
    for label in SPLITS:
        if len(getattr(experience, label)) == 0:
            raise ScanError(
                f"{experience.scan.path}: no frame is left for {label}. Of {len(experience.scan)} frames "
                f"with targets of {experience.preparation.size} pixels, held out are those wholly in {box}, "
                f"trained on those that lie in {region or 'the whole object'} and do not touch it (rows "
                "from, to, columns from, to). Choose a smaller size or other boxes, or a larger scan."
            )
