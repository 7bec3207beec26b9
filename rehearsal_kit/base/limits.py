"""What is allowed as a value: checks that say so, and the same as objects that a table can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.plain_values import plain_value


def require_integer(name: str, value: object, *, low: int, high: int = 2**40) -> int:
    """`value` as an int in [low, high], or a SettingsError that says what is allowed."""
    value = plain_value(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number from {low} to {high}.")
    return value


def require_number(name: str, value: object, *, low: float, high: float) -> float:
    """`value` as a finite float in [low, high], or a SettingsError that says what is allowed."""
    value = plain_value(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise SettingsError(f"{name} is {value!r}; it must be a finite number from {low:g} to {high:g}.")
    return float(value)


def require_switch(name: str, value: object) -> bool:
    """`value` as a bool, or a SettingsError unless it is True or False."""
    value = plain_value(value)
    if not isinstance(value, bool):
        raise SettingsError(f"{name} is {value!r}; it must be True or False.")
    return value


def require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """SettingsError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")


@dataclass(frozen=True)
class Whole:
    """Whole numbers that are allowed: both ends are."""

    low: int
    high: int = 2**40

    types: ClassVar = (int,)

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def require(self, name: str, value: object) -> None:
        """SettingsError unless `value` is one of them."""
        require_integer(name, value, low=self.low, high=self.high)


@dataclass(frozen=True)
class Real:
    """Finite numbers that are allowed: both ends are."""

    low: float
    high: float

    types: ClassVar = (int, float)

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    def require(self, name: str, value: object) -> None:
        """SettingsError unless `value` is one of them."""
        require_number(name, value, low=self.low, high=self.high)


@dataclass(frozen=True)
class Word:
    """Words that are allowed."""

    words: tuple[str, ...] = ()
    """Empty: any text. Whoever knows what it may name refuses the others."""

    types: ClassVar = (str,)

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.words))}" if self.words else "a name"

    def require(self, name: str, value: object) -> None:
        """SettingsError unless `value` is one of them."""
        if self.words:
            require_one_of(name, value, self.words)
        elif not isinstance(value, str):
            raise SettingsError(f"{name} is {value!r}; it must be a name, given as text.")


@dataclass(frozen=True)
class WordOrReal:
    """Words, and finite numbers in a range with both ends, that are allowed."""

    words: tuple[str, ...]
    low: float
    high: float

    types: ClassVar = (str, int, float)

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.words))}, or {Real(self.low, self.high)}"

    def require(self, name: str, value: object) -> None:
        """SettingsError unless `value` is one of them."""
        if isinstance(value, str) and value in self.words:
            return
        try:
            require_number(name, value, low=self.low, high=self.high)
        except SettingsError as error:
            raise SettingsError(f"{name} is {value!r}; it must be {self}.") from error


Limits = Whole | Real | Word | WordOrReal
"""What is allowed, of any kind."""


def require_or(limits: Limits, name: str, value: object, *, other: str | None) -> None:
    """SettingsError unless `value` is within the limits, or is the other one that is allowed beside them."""
    if (value is None and other is None) or (isinstance(value, str) and value == other):
        return
    try:
        limits.require(name, value)
    except SettingsError as error:
        said = "None" if other is None else f'"{other}"'
        raise SettingsError(f"{name} is {value!r}; it must be {limits}, or {said}.") from error
