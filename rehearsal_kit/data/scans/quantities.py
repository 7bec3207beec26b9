"""Numbers with a unit, as files state them: read, made SI or eV, and refused where they are impossible."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rehearsal_kit.base.errors import ScanError

LENGTHS: Mapping[str, float] = {
    "m": 1.0,
    "cm": 1e-2,
    "mm": 1e-3,
    "um": 1e-6,
    "µm": 1e-6,
    "μm": 1e-6,
    "micron": 1e-6,
    "microns": 1e-6,
    "nm": 1e-9,
    "pm": 1e-12,
    "angstrom": 1e-10,
    "Angstrom": 1e-10,
    "A": 1e-10,
    "Å": 1e-10,
}
"""Metres in one of each unit of length."""
JOULE_PER_EV = 1.602176634e-19
ENERGIES: Mapping[str, float] = {
    "eV": 1.0,
    "ev": 1.0,
    "keV": 1e3,
    "kev": 1e3,
    "KeV": 1e3,
    "MeV": 1e6,
    "J": 1 / JOULE_PER_EV,
    "joule": 1 / JOULE_PER_EV,
}
"""Electronvolts in one of each unit of energy."""
LARGEST_DIFFERENCE = 1e-3
"""Pixels whose height and width differ by a smaller part of them are square."""
ANGLES: Mapping[str, float] = {
    "rad": 1.0,
    "radian": 1.0,
    "deg": np.pi / 180,
    "degree": np.pi / 180,
    "degrees": np.pi / 180,
}
"""Radians in one of each unit of angle."""


def factor_of(unit: str, units: Mapping[str, float], where: str) -> float:
    """What a number in this unit is multiplied by; ScanError, which begins with `where`, if it is unknown."""
    if unit not in units:
        raise ScanError(
            f"{where} is in {unit!r}; known units are {', '.join(units)}. Correct its attribute units, or "
            "say in a mapping what it is."
        )
    return units[unit]


def square_side(rows: float, columns: float, where: str) -> float:
    """The side of pixels of this height and width; ScanError, which begins with `where`, if they differ."""
    if abs(rows / columns - 1) > LARGEST_DIFFERENCE:
        raise ScanError(f"{where} are {rows:g} m by {columns:g} m; only square ones are read.")
    return columns


def require_positive(value: float, where: str) -> float:
    """The value; ScanError, which begins with `where`, unless it is a finite number above zero."""
    if not 0 < value < np.inf:
        raise ScanError(f"{where} is {value:g}; it must be a number above zero. Correct it in the file.")
    return value
