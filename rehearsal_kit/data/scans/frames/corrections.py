"""What is made of numbers as stored, so that they are counts of one detector under one beam."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.float32]

LARGEST_16_BIT = 2**16


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrections:
    """Everything that a layout or a mapping says of its numbers; all are of frames as they come out."""

    amplitude: bool = False
    """Whether the square roots of counts are stored."""
    negative: str = "refuse"
    """What counts below zero are: "refuse" them, "zero", or "wrapped" sixteen bit numbers."""
    dark: Frames | None = field(default=None, repr=False)
    """Counts without beam (row, column)."""
    flat: Frames | None = field(default=None, repr=False)
    """What each pixel makes of one photon (row, column); above zero."""
    monitor: NDArray[np.float64] | None = field(default=None, repr=False)
    """Photons that came in (frame,), over their median."""

    def unwrapped(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Frames as stored, sixteen bit numbers that were taken for signed ones as they were counted."""
        if self.negative != "wrapped" or frames.dtype.kind == "u":
            return frames
        if frames.dtype.itemsize == 2:
            return frames.astype(np.uint16)
        return np.where(frames < 0, frames + frames.dtype.type(LARGEST_16_BIT), frames)

    def make_counts(self, frames: Frames) -> None:
        """Make counts of what is stored, in place."""
        if self.amplitude:
            np.square(frames, out=frames)
        if self.negative == "zero":
            np.maximum(frames, 0, out=frames, where=~np.isnan(frames))

    def level(self, frames: Frames) -> None:
        """Take off what is counted in the dark, and make all pixels alike, in place."""
        if self.dark is not None:
            np.maximum(frames - self.dark, 0, out=frames)
        if self.flat is not None:
            frames /= self.flat

    def normalise(self, frames: Frames, numbers: NDArray[np.int64]) -> None:
        """Make frames what they were under a steady beam, in place. numbers: of these frames in the scan."""
        if self.monitor is not None:
            frames /= self.monitor[numbers, None, None].astype(np.float32)
