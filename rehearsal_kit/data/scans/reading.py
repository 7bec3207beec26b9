"""What a person says of scans that their files do not, or wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import Real, require_integer, require_or
from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.data.scans.frames.orientation import require_code
from rehearsal_kit.data.scans.mapping import ScanMapping


@dataclass(frozen=True, kw_only=True)
class ScanReading:
    """How files of scans are read; what is None is recognised, or found in the file."""

    layout: str | None = None
    """Name of a layout, as `rehearsal-kit inspect` lists them."""
    mapping: ScanMapping | Mapping[str, Any] | None = None
    """Where the fields lie in files of no known layout; see `ScanMapping`."""
    roots: Sequence[str] = ()
    """Folders that links in files may lead to, beside the file's own."""
    positions: str | None = None
    """File with the positions: a name in the folder of the scan, in which {stem} stands for its name without
    suffix and {number} for the longest run of digits in it."""
    reconstruction: str | None = None
    """File with the reconstruction, named in the same way."""
    orientation: int | None = None
    """How frames have to be turned, 0 to 7; see `orientation.require_code`."""
    crop: int | None = None
    """Detector pixels of the square around the beam; None: those that the reconstruction was made from, else
    the whole frame where the beam hits its middle, else the largest power of two that fits."""
    centre: tuple[float, float] | None = None
    """Where the beam hits the detector, row and column as stored."""
    energy_ev: float | None = None
    """Energy of a photon; as the two that follow, where the file does not tell it, or wrongly."""
    distance_m: float | None = None
    """The way from the sample to the detector."""
    detector_pixel_m: float | None = None
    """Side of a pixel of the detector."""
    object_pixel_m: float | None = None
    """Side of a pixel of the object that whole frames belong to, where none of these is known."""

    def __post_init__(self) -> None:
        if isinstance(self.mapping, Mapping):  # as it was written down with a run
            object.__setattr__(self, "mapping", ScanMapping(**self.mapping))
        if isinstance(self.roots, str):
            raise SettingsError(f"roots is {self.roots!r}; it must be a list of folders.")
        object.__setattr__(self, "roots", tuple(map(str, self.roots)))
        make_plain(self)
        for label in ("layout", "positions", "reconstruction"):
            value = getattr(self, label)
            if value is not None and (not isinstance(value, str) or not value):
                raise SettingsError(f"{label} is {value!r}; it must be a text or None.")
        if self.layout is not None and self.mapping is not None:
            raise SettingsError(f"layout is {self.layout!r} and there is a mapping, too; give one of them.")
        if self.orientation is not None:
            require_code("orientation", self.orientation)
        for label in ("energy_ev", "distance_m", "detector_pixel_m", "object_pixel_m"):
            require_or(Real(1e-12, 1e9), label, getattr(self, label), other=None)
        if self.crop is not None:
            require_integer("crop", self.crop, low=2)
        if self.centre is not None:
            object.__setattr__(self, "centre", _pair("centre", self.centre))


def _pair(label: str, value: Any) -> tuple[float, float]:
    try:
        row, column = (float(each) for each in value)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{label} is {value!r}; it must be two numbers, row and column.") from error
    return row, column
