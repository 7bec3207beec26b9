"""What stands for a digest where all of it would be too long."""

from __future__ import annotations

DIGITS = 16
"""Hexadecimal digits of a digest that are kept and shown: no two meet by chance."""
_INT64_DIGITS = 15
"""Hexadecimal digits that an int64 holds, whatever they are."""


def number_of(digest: str) -> int:
    """The number that stands for a hexadecimal digest of `DIGITS` digits or more where an int64 is sent."""
    return int(digest[:_INT64_DIGITS], 16)
