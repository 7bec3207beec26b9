"""The order in which people count: scan_9 comes before scan_10."""

from __future__ import annotations

import re
from collections.abc import Iterable


def natural_key(name: str) -> list[int | str]:
    """Sorts scan_9 before scan_10."""
    # Only the digits that int() knows: a superscript two is a digit to str, and no number.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def in_natural_order(names: Iterable[str]) -> list[str]:
    """The same names, scan_9 before scan_10."""
    return sorted(names, key=natural_key)
