"""Decisions from outside a run: what a person wants and what the world brings, as plain frozen values.

Everything here crosses a process boundary as JSON and is written to a ledger, so it holds numbers, text
and tuples of numbers only. All ranks apply a command at the same step (design: Contracts, Steering).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rehearsal_kit.errors import SettingsError
from rehearsal_kit.settings import require_integer, require_number

Box = tuple[float, float, float, float]
"""Rows from, rows to, columns from, columns to, in object pixels; the ends do not belong to it."""


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A scan is there: it becomes the next task."""

    name: str
    path: str
    region: Box | None = None
    """Only patches that lie wholly in this part of the object are trained on; None: the whole object."""
    held_out: Box | None = None
    """Patches that lie wholly in it are watched and tested; None: the lowest rows of the scan."""
    digest: str = ""
    """SHA-256 of the file; rank 0 fills it in before the command is broadcast."""

    def __post_init__(self) -> None:
        for label in ("name", "path"):
            if not isinstance(getattr(self, label), str) or not getattr(self, label):
                raise SettingsError(f"{label} of a task is {getattr(self, label)!r}; it must be a text.")
        for label in ("region", "held_out"):
            _require_box(label, getattr(self, label))


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A task that is not trained on, and why."""

    name: str
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Watch:
    """New files that match become tasks, in natural order of their names."""

    pattern: str
    existing: bool = True
    """Whether the files that match already when the command takes effect count too."""


@dataclass(frozen=True)
class Pause:
    """All ranks stay in the control loop and take no step."""


@dataclass(frozen=True)
class Resume:
    """Go on after a pause."""


@dataclass(frozen=True)
class Stop:
    """End the run at this step, with what it has learned saved."""


@dataclass(frozen=True)
class FinishStream:
    """No task will come after those that have arrived; the run ends once they are trained."""


@dataclass(frozen=True, kw_only=True)
class Steer:
    """New values of the settings that may change while the run goes on; None leaves one as it is."""

    learning_rate: float | None = None
    representatives: int | None = None
    capacity: int | None = None
    """Samples that the buffers of all ranks together may hold."""
    distillation: int | None = None
    strategy: str | None = None
    """Name of one of our strategies."""
    alpha: float | None = None
    """Weight of the distillation (DER, DERpp)."""
    beta: float | None = None
    """Weight of the representatives (DERpp)."""

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in fields(self)):
            names = ", ".join(field.name for field in fields(self))
            raise SettingsError(f"steer was called without a value; it takes any of: {names}.")
        if self.learning_rate is not None:
            require_number("learning_rate", self.learning_rate, low=1e-9, high=10.0)
        if self.representatives is not None:
            require_integer("representatives", self.representatives, low=0, high=2**20)
        if self.capacity is not None:
            require_integer("capacity", self.capacity, low=1)
        if self.distillation is not None:
            require_integer("distillation", self.distillation, low=0, high=2**20)
        if self.strategy is not None and not isinstance(self.strategy, str):
            raise SettingsError(f"strategy is {self.strategy!r}; it must be the name of one.")
        for name in ("alpha", "beta"):
            if (weight := getattr(self, name)) is not None:
                require_number(name, weight, low=0, high=1e6)


Command = Arrived | SetAside | Watch | Pause | Resume | Stop | FinishStream | Steer
_KINDS: Mapping[str, type[Any]] = {
    kind.__name__: kind for kind in (Arrived, SetAside, Watch, Pause, Resume, Stop, FinishStream, Steer)
}


@dataclass(frozen=True)
class Wish:
    """A command with the number that the kernel gave it; rank 0's own decisions have number 0."""

    number: int
    command: Command

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(to_plain(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Wish:
        """The wish that `to_json` wrote; checks every value again."""
        plain = json.loads(text)
        return Wish(require_integer("number", plain.pop("number", None), low=0), from_plain(plain))


def to_plain(wish: Wish) -> dict[str, object]:
    """The wish as a dictionary of plain values, with its kind."""
    return {"number": wish.number, "kind": type(wish.command).__name__, **asdict(wish.command)}


def from_plain(plain: Mapping[str, Any]) -> Command:
    """The command that a dictionary of plain values describes; SettingsError if it describes none."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
    kind = _KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise SettingsError(f"command kind {plain.get('kind')!r} is unknown; known are {', '.join(_KINDS)}.")
    try:
        command: Command = kind(**values)
    except TypeError as error:
        raise SettingsError(
            f"command {plain!r} does not have the fields of {kind.__name__}: {error}."
        ) from error
    return command


def _require_box(label: str, box: object) -> None:
    if box is None:
        return
    if not isinstance(box, tuple) or len(box) != 4 or not (box[0] < box[1] and box[2] < box[3]):
        raise SettingsError(
            f"{label} of a task is {box!r}; it must be None or (row from, row to, column from, column to) "
            "in object pixels with from < to."
        )
