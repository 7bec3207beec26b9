"""What stands for a digest where all of it would be too long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

DIGITS = 16
"""Hexadecimal digits of a digest that are kept and shown: no two meet by chance."""
_INT64_DIGITS = 15
"""Hexadecimal digits that an int64 holds, whatever they are."""


def number_of(digest: str) -> int:
    """The number that stands for a hexadecimal digest of `DIGITS` digits or more where an int64 is sent."""
    return int(digest[:_INT64_DIGITS], 16)


def digest(values: Mapping[str, object]) -> str:
    """Short fingerprint of plain values; equal on two ranks exactly when the values are equal."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
