"""The way from detector frames to what a network is given; the same for every task of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from rehearsal_kit.base.errors import ScanError, SettingsError
from rehearsal_kit.base.limits import Real, require_integer, require_or
from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan import Frames, Scan

_TRANSFORMS = ("raw", "sqrt", "log1p")
_FITTED_ON = 64
"""Frames with counts that fix the scale."""
_LOOKED_AT = 16 * _FITTED_ON
"""Frames among which these are looked for."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Bins whole frames to `size`, transforms the counts and divides them by a fixed scale.

    Binning keeps the pixel of the object and narrows the view: the target of a frame is the central
    `size` x `size` pixels of its patch.
    """

    size: int = 64
    """Rows and columns of what the network is given."""
    counts: str = "sqrt"
    """"raw", "sqrt" or "log1p"."""
    crop: int | None = None
    """Detector pixels of the square that is cut out around the beam; None: those that the reconstruction was
    made from, see `ScanReading`. Another number than that changes the pixel of the object."""
    scale: float | None = None
    """What the transformed counts are divided by; None: see `fitted`."""
    reading: ScanReading = field(default_factory=ScanReading)
    """What is told of the files of scans."""

    def __post_init__(self) -> None:
        make_plain(self)
        if isinstance(self.reading, Mapping):  # as it was written down with a run
            object.__setattr__(self, "reading", ScanReading(**self.reading))
        if not isinstance(self.reading, ScanReading):
            raise SettingsError(f"reading is {self.reading!r}; it must be a ScanReading.")
        require_integer("size", self.size, low=1, high=2**14)
        if self.counts not in _TRANSFORMS:
            raise SettingsError(f"counts is {self.counts!r}; it must be one of {', '.join(_TRANSFORMS)}.")
        if self.crop is not None and require_integer("crop", self.crop, low=self.size) % self.size:
            raise SettingsError(f"crop is {self.crop}; it must be a multiple of size {self.size}.")
        require_or(Real(1e-12, 1e12), "scale", self.scale, other=None)

    @property
    def scan_reading(self) -> ScanReading:
        """How files of scans are read for it: cut to its crop."""
        return self.reading if self.crop is None else replace(self.reading, crop=self.crop)

    def require_fit(self, scan: Scan) -> None:
        """Raises a ScanError that names the file unless the frames of a scan can be prepared."""
        self.require_shape(scan.frame_shape, f"{scan.path}: ")

    def fitted(self, scan: Scan, *, file: ScanFile | None = None) -> Preparation:
        """The same with the scale fixed by a scan, the first task: most inputs then lie in 0..1.

        The scale is the 99.9th percentile of the transformed counts of 64 frames, spread over the whole scan:
        its first ones may have been taken before the shutter opened. A scale that is set already stays.
        file: the scan's own, where it is open already.

        Raises:
            ScanError: frames that do not fit, or no counts in them.
        """
        self.require_fit(scan)
        if self.scale is not None:
            return self
        frames, looked_at = _lit_frames(scan, file)
        scale = float(np.percentile(self._transformed(frames), 99.9)) if len(frames) else 0.0
        if scale <= 0:
            raise ScanError(
                f"{scan.path}: {looked_at} frames from all over the scan hold next to no counts, so no scale "
                "can be fitted; was the shutter closed? Or set Preparation(scale=...)."
            )
        return replace(self, scale=scale)

    def apply(self, frames: Frames) -> torch.Tensor:
        """Counts (frame, row, column) to network input, float32 (frame, 1, size, size).

        Raises:
            ScanError: frames of a shape that cannot be binned to `size`.
            SettingsError: no scale yet.
        """
        if self.scale is None:
            raise SettingsError(
                "scale is None; use fitted(first_scan).apply(...), or set Preparation(scale=...)."
            )
        self.require_shape(frames.shape[1:], "")
        return torch.from_numpy(self._transformed(frames) / np.float32(self.scale))[:, None]

    def _transformed(self, frames: Frames) -> Frames:
        each = frames.shape[-1] // self.size
        binned: Frames = frames.reshape(len(frames), self.size, each, self.size, each).sum(axis=(2, 4))
        match self.counts:
            case "sqrt":
                np.sqrt(binned, out=binned)
            case "log1p":
                np.log1p(binned, out=binned)
        return binned

    def require_shape(self, shape: tuple[int, ...], where: str) -> None:
        """ScanError that begins with `where`, unless frames of this shape can be binned to `size`."""
        allowed = f"a multiple of size {self.size}" if self.crop is None else f"the crop, {self.crop}"
        side = shape[-1] if shape else 0
        fits = side >= self.size and side % self.size == 0 and self.crop in (None, side)
        if len(shape) != 2 or shape[0] != side or not fits:
            raise ScanError(
                f"{where}frames are {' x '.join(map(str, shape))} pixels; both sides must be {allowed}. "
                "Cropping frames would change the pixel of the object: choose another size, or reconstruct "
                "from cropped frames."
            )


def _lit_frames(scan: Scan, file: ScanFile | None) -> tuple[Frames, int]:
    """Some frames with counts from all over a scan, and how many were looked at to find them."""
    # The golden ratio spreads the first few of these numbers as evenly as all of them.
    order = np.argsort(np.arange(len(scan)) * ((5**0.5 - 1) / 2) % 1, kind="stable")[:_LOOKED_AT]
    found: list[Frames] = []
    for begin in range(0, len(order), _FITTED_ON):
        frames = scan.frames(np.sort(order[begin : begin + _FITTED_ON]), file=file)
        found.append(frames[frames.any(axis=(1, 2))])
        if sum(map(len, found)) >= _FITTED_ON:
            break
    return np.concatenate(found), min(len(order), begin + _FITTED_ON)
