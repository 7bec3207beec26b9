"""The settings that may change while a run goes on: the one table from which all is made that handles them.

The command (`Steer`) checks by it, the settings in force (`LiveSettings`) list and change what it names,
`Session.steer` takes it as keywords, and the dashboard makes its controls from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.settings import POLICIES, require_integer, require_number, require_one_of

Value = float | str
"""A setting as a plain value."""
OFF = "off"
"""The plain value of a setting that is None with its owner: None in a command leaves a setting as it is."""


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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting that may change while a run goes on."""

    name: str
    """Its name wherever it stands: in calls, ledgers, records and checkpoints."""
    owner: Literal["training", "rehearsal", "strategy", "run"]
    """Whose field it is: of `Training`, `Rehearsal`, the strategy (a weight of its loss), or the run."""
    limits: Whole | Real | Word | WordOrReal
    """What is allowed. Nothing less than the owner allows, else a run could not be taken up as it began."""
    text: str
    """What it is: the tooltip of its control, and its line in the docstring of `Session.steer`."""
    slider: tuple[float, float] | None = None
    """Ends of its slider in the main row of the dashboard; None: a field under "more settings"."""
    may_be_off: bool = False
    """Whether its owner may have None instead of a number, which is steered to as `OFF`."""

    @property
    def label(self) -> str:
        """Its name as people read it."""
        return self.name.replace("_", " ")

    @property
    def is_text(self) -> bool:
        """Whether people write it as text, because numbers are not all that it may be."""
        return self.may_be_off or isinstance(self.limits, WordOrReal)

    @property
    def allowed(self) -> str:
        """What it can be steered to, in words."""
        return f'{self.limits}, or "{OFF}"' if self.may_be_off else str(self.limits)

    def require(self, value: object) -> None:
        """SettingsError, with its name, unless `value` is allowed."""
        if not self.may_be_off:
            self.limits.require(self.name, value)
        elif value != OFF:
            try:
                self.limits.require(self.name, value)
            except SettingsError as error:
                raise SettingsError(f"{self.name} is {value!r}; it must be {self.allowed}.") from error

    def is_plain(self, value: object) -> bool:
        """Whether a value is of the kind that can be steered to: a capacity in bytes is not."""
        return isinstance(value, self.limits.types) or (self.may_be_off and value == OFF)

    def of_owner(self, value: Value) -> Value | None:
        """A plain value as its owner has it: None for `OFF`."""
        return None if self.may_be_off and value == OFF else value


def _by_name(settings: Iterable[Setting]) -> Mapping[str, Setting]:
    return {setting.name: setting for setting in settings}


SETTINGS = _by_name([
    Setting(
        name="learning_rate",
        owner="training",
        limits=Real(1e-9, 10.0),
        text="Highest learning rate of the schedule",
        slider=(1e-6, 1e-1),
    ),
    Setting(
        name="representatives",
        owner="rehearsal",
        limits=Whole(0),
        text="Stored samples added to every mini-batch",
        slider=(0, 64),
    ),
    Setting(
        name="capacity",
        owner="rehearsal",
        limits=Whole(1),
        text="Samples that the buffers of all ranks together may hold",
    ),
    Setting(
        name="distillation",
        owner="rehearsal",
        limits=Whole(0),
        text="Stored samples drawn again to compare their outputs (DER, DERpp with two draws)",
    ),
    Setting(
        name="candidates",
        owner="rehearsal",
        limits=Whole(0),
        text="Samples of a mini-batch that a full buffer is offered",
    ),
    Setting(
        name="policy",
        owner="rehearsal",
        limits=Word(tuple(POLICIES)),
        text=f"What stays in the buffer: {', '.join(f'{what} ({name})' for name, what in POLICIES.items())}",
    ),
    Setting(
        name="batch",
        owner="training",
        limits=Whole(1),
        text="New samples per step, from the next mini-batch on",
    ),
    Setting(
        name="clip_norm",
        owner="training",
        limits=Real(1e-9, 1e9),
        text=f'Norm to which a longer gradient over all ranks is shortened; "{OFF}": never',
        may_be_off=True,
    ),
    Setting(name="strategy", owner="run", limits=Word(), text="What is trained on and with which loss"),
    Setting(
        name="alpha", owner="strategy", limits=Real(0, 1e6), text="Weight of the distillation (DER, DERpp)"
    ),
    Setting(
        name="beta", owner="strategy", limits=Real(0, 1e6), text="Weight of the representatives (DERpp)"
    ),
    Setting(
        name="balance",
        owner="strategy",
        limits=WordOrReal(("samples", "equal", "tasks"), 0, 1e6),
        text="What representatives weigh beside new samples (ER): as many as they are, the same, T - 1 times",
    ),
    Setting(
        name="consistency",
        owner="strategy",
        limits=Real(0, 1e6),
        text="Weight of the distance to the average of the weights (MeanER), or to the better of two (CLSER)",
    ),
    Setting(
        name="draws",
        owner="strategy",
        limits=Whole(1, 2),
        text="Draws for targets and stored outputs (DERpp): one for both, or one for each",
    ),
])  # fmt: skip
"""The table, in the order of ledgers and of the screen."""


def require_steerable(names: Iterable[str]) -> None:
    """SettingsError for a name that is not in the table, with the one that was probably meant."""
    for name in names:
        if name not in SETTINGS:
            close = difflib.get_close_matches(name, SETTINGS, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise SettingsError(
                f"{name!r} is not a setting that may change while a run goes on; {meant}steer takes any of: "
                f"{', '.join(SETTINGS)}."
            )
