"""What a person chooses before a run: frozen, typed, validated. History never lives here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rehearsal_kit.errors import SettingsError


def require_integer(name: str, value: object, *, low: int, high: int = 2**40) -> int:
    """`value` as an int in [low, high], or a SettingsError that says what is allowed."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number from {low} to {high}.")
    return value


def require_number(name: str, value: object, *, low: float, high: float) -> float:
    """`value` as a finite float in [low, high], or a SettingsError that says what is allowed."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise SettingsError(f"{name} is {value!r}; it must be a finite number from {low:g} to {high:g}.")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How every task is trained; the same for all strategies."""

    batch: int = 16
    """New samples per rank and step (b)."""
    epochs: int = 3
    """Passes over the data of a task."""
    learning_rate: float = 1e-3
    """Of Adam; steerable while the run goes on. Not scaled with the number of ranks."""

    def __post_init__(self) -> None:
        require_integer("batch", self.batch, low=1)
        require_integer("epochs", self.epochs, low=1)
        require_number("learning_rate", self.learning_rate, low=1e-9, high=10.0)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """How much is remembered and how much of it comes back."""

    representatives: int = 24
    """Stored samples added to every mini-batch, per rank (r); steerable while the run goes on."""
    candidates: int = 8
    """Samples of every mini-batch offered to the buffer once it is full, per rank (c)."""
    capacity: int = 2000
    """Samples held over all ranks together."""

    def __post_init__(self) -> None:
        require_integer("representatives", self.representatives, low=0)
        require_integer("candidates", self.candidates, low=0)
        require_integer("capacity", self.capacity, low=1)


def digest(values: Mapping[str, object]) -> str:
    """Short fingerprint of plain values; equal on two ranks exactly when the values are equal."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
