"""The arms of a comparison: a strategy, the settings in which it differs, and the size of its buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_number
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.compare.streams import CLASSES, CompareStream
from rehearsal_kit.learning.strategies.choice import named_strategy, require_suited
from rehearsal_kit.learning.strategies.losses import NO_CLASSES
from rehearsal_kit.learning.strategies.strategy import Strategy

PERCENT = 30.0
"""Percentage of the stream that buffers hold, unless said otherwise."""
SHORT: Mapping[str, str] = {
    "r": "representatives",
    "rd": "distillation",
    "c": "candidates",
    "lr": "learning_rate",
}
"""Settings by the names that papers give them, as arms are called."""
ELSEWHERE = ("capacity", "loss", "half", "outputs")
"""What an arm says otherwise, or not at all: the size of its buffer is a percentage, and what its rows are
is the same for all."""

LARGE = 2**40
"""Samples of a buffer whose size is not known yet."""

Value = float | str
Settings = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Arm:
    """A strategy, how much of the stream its buffer holds, and settings other than those of the stream."""

    strategy: str
    percent: float
    settings: Settings = ()
    """Names of fields of the strategy, of `Rehearsal` or of `Training`, and their values."""

    @staticmethod
    def parsed(text: str) -> Arm:
        """The arm called "er", "er@5", "derpp:alpha=0.2@10" or "er:r=8,balance=equal@5".

        After the colon: fields of the strategy, of `Rehearsal` or of `Training`, or r, rd, c and lr; after
        the @: the percentage of the stream that the buffer holds. SettingsError for anything else.
        """
        named, at, percent = text.partition("@")
        name, _, said = named.partition(":")
        made = named_strategy(name)
        found = [_setting(text, each, made) for each in said.split(",") if each]
        settings = tuple(sorted(found, key=lambda setting: setting[0]))
        names = [name for name, _ in settings]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SettingsError(f"strategy {text!r}: {', '.join(sorted(twice))} came twice; say it once.")
        try:
            share = round(float(percent), 4) if at else PERCENT
        except ValueError as error:
            raise SettingsError(
                f"strategy {text!r}: {percent!r} is no percentage; write for example er@10."
            ) from error
        require_number("the percentage of the buffer", share, low=0.01, high=100.0)
        arm = Arm(made.name, share if made.replays or made.distils else 0.0, settings)
        arm._require_allowed(text)
        return arm

    @property
    def name(self) -> str:
        """The strategy and its settings, without the size of the buffer."""
        return " ".join([self.strategy, *self._words()])

    @property
    def label(self) -> str:
        """Name of the arm, as tables call it."""
        return f"{self.name} {self.percent:g} %" if self.percent else self.name

    @property
    def slug(self) -> str:
        """Name of the arm, as folders are called."""
        size = [f"{self.percent:g}"] if self.percent else []
        return "-".join([self.strategy.lower(), *self._words(), *size])

    def made(self, stream: CompareStream) -> Strategy:
        """The strategy with the weights that suit a stream, but for those that are said."""
        own = named_strategy(self.strategy)
        suited = {"alpha": stream.alpha, "beta": stream.beta}
        return named_strategy(self.strategy, **{**_fields(own, suited), **_fields(own, dict(self.settings))})

    def rehearsal(self, stream: CompareStream) -> Rehearsal:
        """How much is rehearsed, without the capacity."""
        return replace(stream.rehearsal, capacity=LARGE, **_fields(stream.rehearsal, dict(self.settings)))

    def training(self, stream: CompareStream) -> Training:
        """How every task is trained."""
        return replace(stream.training, **_fields(stream.training, dict(self.settings)))

    def require_suited(self, stream: CompareStream) -> None:
        """SettingsError for a stream on which this arm could not be trained, before hours of others are."""
        strategy = self.made(stream)
        require_suited(strategy, self.rehearsal(stream), self.training(stream))
        if strategy.for_classes and stream.measure != CLASSES:
            raise SettingsError(f"{self.label} on {stream.name}: {NO_CLASSES}")

    def _words(self) -> list[str]:
        short = {name: key for key, name in SHORT.items()}
        return [f"{short.get(name, name)}={value}" for name, value in self.settings]

    def _require_allowed(self, text: str) -> None:
        try:
            named_strategy(self.strategy, **_fields(named_strategy(self.strategy), dict(self.settings)))
            Rehearsal(capacity=LARGE, **_fields(Rehearsal(), dict(self.settings)))
            Training(**_fields(Training(), dict(self.settings)))
        except SettingsError as error:
            raise SettingsError(f"strategy {text!r}: {error}") from error


def _setting(text: str, said: str, strategy: Strategy) -> tuple[str, Value]:
    key, equals, value = said.partition("=")
    name = SHORT.get(key, key)
    known = [*SHORT, *_names(strategy), *_names(Rehearsal()), *_names(Training())]
    if not equals or name in ELSEWHERE or name not in {*known, *SHORT.values()}:
        raise SettingsError(
            f"strategy {text!r}: {said!r} is no setting; write for example er:r=8,balance=equal@5, with any "
            f"of {', '.join(dict.fromkeys(each for each in known if each not in ELSEWHERE))}."
        )
    return name, _value(value)


def _value(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _names(settings: Any) -> list[str]:
    return [field.name for field in fields(settings)] if is_dataclass(settings) else []


def _fields(settings: Any, values: Mapping[str, Value]) -> dict[str, Any]:
    """Those of the values that are fields of these settings."""
    has = set(_names(settings)) - set(ELSEWHERE)
    return {name: value for name, value in values.items() if name in has}
