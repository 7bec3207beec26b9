"""What is known of one setting that may change while a run goes on; all of them are in `SETTINGS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rehearsal_kit.base.limits import Limits, WordOrReal, require_or

Value = float | str
"""A setting as a plain value."""
OFF = "off"
"""The plain value of a setting that is None with its owner: None in a command leaves a setting as it is."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting that may change while a run goes on."""

    name: str
    """Its name wherever it stands: in calls, ledgers, records and checkpoints."""
    owner: Literal["training", "rehearsal", "strategy", "run"]
    """Whose field it is: of `Training`, `Rehearsal`, the strategy (a weight of its loss), or the run."""
    limits: Limits
    """What is allowed, before a run and while it goes on."""
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
        self._require(value, off=OFF)

    def require_of_owner(self, value: object) -> None:
        """SettingsError, with its name, unless its owner may have `value`: None where it may be off."""
        self._require(value, off=None)

    def _require(self, value: object, *, off: str | None) -> None:
        if self.may_be_off:
            require_or(self.limits, self.name, value, other=off)
        else:
            self.limits.require(self.name, value)

    def is_plain(self, value: object) -> bool:
        """Whether a value is of the kind that can be steered to: a capacity in bytes is not."""
        return isinstance(value, self.limits.types) or (self.may_be_off and value == OFF)

    def of_owner(self, value: Value) -> Value | None:
        """A plain value as its owner has it: None for `OFF`."""
        return None if self.may_be_off and value == OFF else value
