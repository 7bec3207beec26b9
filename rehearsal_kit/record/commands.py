"""Decisions from outside a run: what a person wants and what the world brings, as plain frozen values.

Everything here crosses a process boundary as JSON and is written to a ledger, so it holds numbers, text
and tuples of numbers only. All ranks apply a command at the same step (design: Contracts, Steering).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer, require_switch
from rehearsal_kit.base.plain_values import make_plain, plain_value, with_tuples
from rehearsal_kit.base.settings import SETTINGS, require_steerable
from rehearsal_kit.base.steerable import OFF, Value
from rehearsal_kit.record.task_fields import TaskFields

NOTE_LENGTH = 2000
Box = tuple[float, float, float, float]
"""Rows from, rows to, columns from, columns to, in object pixels; the ends do not belong to it."""


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A scan is there: it becomes the next task."""

    name: str
    path: str
    """Path of its file; once written down, that of one in the run folder is its place in there."""
    region: Box | None = None
    """Only patches that lie wholly in this part of the object are trained on; None: the whole object."""
    held_out: Box | None = None
    """Patches that lie wholly in it are watched and tested; None: the lowest rows of the scan."""
    fields: TaskFields | None = None
    """Which datasets of its file make the task; None: it is a scan, or was written by `write_task`."""
    files: tuple[str, ...] = ()
    """Other files that its scan is spread over, by their place from its own; rank 0 fills them in before the
    command is broadcast, and the three that follow."""
    digest: str = ""
    """SHA-256 of the file; where there are others, of the digests of all."""
    size: int = 0
    """Bytes of all its files."""
    modified: int = 0
    """When they were written last, in nanoseconds since the epoch, added up: while both are the same, nobody
    reads the files to compare their digest."""

    def __post_init__(self) -> None:
        make_plain(self)
        for label in ("name", "path"):
            if not isinstance(getattr(self, label), str) or not getattr(self, label):
                raise SettingsError(f"{label} of a task is {getattr(self, label)!r}; it must be a text.")
        object.__setattr__(self, "files", tuple(self.files))
        _take_fields(self)
        if not all(isinstance(each, str) and each for each in self.files):
            raise SettingsError(f"files of a task are {self.files!r}; they must be texts.")
        for label in ("region", "held_out"):
            _require_box(label, getattr(self, label))


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A task that is not trained on, and why."""

    name: str
    path: str
    reason: str
    task: int | None = None
    """Its number, if it had one already."""
    digest: str = ""
    """SHA-256 of the file that was set aside; another content may become a task."""
    between: bool = False
    """Whether that was found between two steps, of one that was taken before; written down where it is so."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """New files that match become tasks, in natural order of their names."""

    pattern: str
    existing: bool = True
    """Whether the files that match already when the command takes effect count too."""
    fields: TaskFields | None = None
    """Which datasets of such files make a task; None: they are scans."""
    known: tuple[str, ...] = ()
    """Files that do not count; rank 0 fills in those that were there already, as `existing` asks."""

    def __post_init__(self) -> None:
        make_plain(self)
        require_switch("existing", self.existing)
        _take_fields(self)


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


@dataclass(frozen=True)
class Reopen:
    """A run that had ended goes on; if it had finished its tasks, more may come."""


@dataclass(frozen=True)
class FinishTask:
    """The task under way has been trained enough: evaluate it and begin the next."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A task that waits is not to be trained."""

    task: int

    def __post_init__(self) -> None:
        make_plain(self)
        require_integer("task", self.task, low=0)


@dataclass(frozen=True, kw_only=True)
class Reorder:
    """The tasks that come next of those that wait, in this order; the tasks that wait are numbered anew."""

    order: tuple[int, ...]

    def __post_init__(self) -> None:
        make_plain(self)
        if not isinstance(self.order, tuple) or len(set(self.order)) != len(self.order):
            raise SettingsError(f"order is {self.order!r}; it must be numbers of tasks, each of them once.")
        for task in self.order:
            require_integer("a task in order", task, low=0)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate all tasks so far at this step."""


@dataclass(frozen=True, kw_only=True)
class TakeCheckpoint:
    """Keep all that the run is at this step; the n-th of a run is checkpoint n."""

    spare: int | None = None
    """An older one that must not make room for it."""


@dataclass(frozen=True, kw_only=True)
class RollBack:
    """Go on from a checkpoint as another branch of the run. Tasks that have arrived since stay."""

    checkpoint: int

    def __post_init__(self) -> None:
        make_plain(self)
        require_integer("checkpoint", self.checkpoint, low=1)


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a person wants to be remembered at this step."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip() or len(self.text) > NOTE_LENGTH:
            raise SettingsError(
                f"a note is {self.text!r:.80}; it must be a text of 1 to {NOTE_LENGTH} letters."
            )


@dataclass(frozen=True, kw_only=True)
class TaskDone:
    """A task has ended: a decision of all ranks, written down so that a replay can be held to it."""

    task: int
    weights: str
    """Fingerprint of the weights."""


@dataclass(frozen=True, kw_only=True)
class StartedOver:
    """A task goes back to where it began, because numbers were not finite, and the run waits for a person.

    Found by all ranks from what they computed, and written down because ranks that begin again may compute
    other numbers, on a device that does not give the same bits each time: they go back here all the same.
    """

    task: int
    reason: str
    """What the person is told."""
    between: bool = False
    """Whether that was found between two steps, of one that was taken before; written down where it is so."""


@dataclass(frozen=True)
class Finished:
    """Every task that has arrived is trained and no more will come: found by all ranks.

    Written down because what comes at the same step may come before it or after it.
    """


@dataclass(frozen=True, kw_only=True)
class BeginAgain:
    """The run goes on from a checkpoint as another branch: what was recorded after it binds no more.

    Because there is another number of ranks now, or because data are gone. People's decisions and arrivals
    that were recorded after it are decided again.
    """

    checkpoint: int
    """0: from the very beginning."""
    ranks: int
    begins: int
    """Number of the new branch, never used before."""
    checkpoints: int
    """How many were taken so far; numbers of checkpoints are given once."""
    parent: int
    """The branch that is left, before step `left`."""
    left: int
    lost: tuple[tuple[int, str], ...] = ()
    """Tasks that can no longer be read, and why."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lost", tuple((int(task), str(reason)) for task, reason in self.lost))


@dataclass(frozen=True, init=False, repr=False)
class Steer:
    """New values of settings that may change while the run goes on: those of the table `SETTINGS`."""

    given: tuple[tuple[str, Value], ...]
    """Names and new values, in the order of the table; every other setting stays as it is."""

    def __init__(self, **settings: Value | None) -> None:
        """None leaves a setting as it is; SettingsError for a name or a value that is not allowed."""
        require_steerable(settings)
        chosen = {name: plain_value(value) for name, value in settings.items()}
        given = tuple((name, value) for name in SETTINGS if (value := chosen.get(name)) is not None)
        if not given:
            off = [f'{name}="{OFF}"' for name in settings if SETTINGS[name].may_be_off]
            none = f" For none, write {', '.join(off)}." if off else ""
            raise SettingsError(
                f"steer was called without a value; it takes any of: {', '.join(SETTINGS)}.{none}"
            )
        for name, value in given:
            SETTINGS[name].require(value)
        object.__setattr__(self, "given", given)

    def __repr__(self) -> str:
        return f"Steer({', '.join(f'{name}={value!r}' for name, value in self.given)})"

    def values(self, owner: str) -> dict[str, Any]:
        """What is to change of the settings that `owner` has, as it has them."""
        mine = [(SETTINGS[name], value) for name, value in self.given if SETTINGS[name].owner == owner]
        return {setting.name: setting.of_owner(value) for setting, value in mine}

    @property
    def off(self) -> frozenset[str]:
        """The settings that are to be None from now on."""
        return frozenset(name for name, value in self.given if SETTINGS[name].of_owner(value) is None)

    def to_plain(self) -> dict[str, object]:
        """Every setting of the table by name, None where it stays: the form in ledgers since the first."""
        return dict.fromkeys(SETTINGS) | dict(self.given)


Command = (
    Arrived
    | SetAside
    | Watch
    | Pause
    | Resume
    | Stop
    | FinishStream
    | Reopen
    | FinishTask
    | Skip
    | Reorder
    | Evaluate
    | TakeCheckpoint
    | RollBack
    | Note
    | TaskDone
    | StartedOver
    | Finished
    | BeginAgain
    | Steer
)
OF_RANKS = (SetAside, TaskDone, StartedOver, Finished, BeginAgain)
"""Found or decided by the ranks themselves: no kernel may wish for them."""
_KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in Command.__args__}


@dataclass(frozen=True)
class Wish:
    """A command with the number that the kernel gave it; rank 0's own decisions have number 0."""

    number: int
    command: Command
    holder: str = ""
    """The kernel whose wish it is, among whose wishes the number tells it apart; empty: no kernel's."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(to_plain(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Wish:
        """The wish that `to_json` wrote; checks every value again."""
        return wish_of(json.loads(text))


def to_plain(wish: Wish) -> dict[str, object]:
    """The wish as a dictionary of plain values, with its kind."""
    holder, command = {"holder": wish.holder} if wish.holder else {}, wish.command
    values = command.to_plain() if isinstance(command, Steer) else asdict(command)
    if not values.get("between", True):  # ledgers of before have no such word
        del values["between"]
    return {"number": wish.number, **holder, "kind": type(command).__name__, **values}


def wish_of(plain: Mapping[str, Any]) -> Wish:
    """The wish that `to_plain` has taken apart; SettingsError if it is none."""
    values = dict(plain)
    number, holder = values.pop("number", None), str(values.pop("holder", ""))
    return Wish(require_integer("number", number, low=0), from_plain(values), holder)


def from_plain(plain: Mapping[str, Any]) -> Command:
    """The command that a dictionary of plain values describes; SettingsError if it describes none."""
    values = with_tuples(plain)
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


def _take_fields(command: Arrived | Watch) -> None:
    """Make `fields` what they were before JSON made plain values of them."""
    fields: object = command.fields
    if isinstance(fields, Mapping):
        object.__setattr__(command, "fields", TaskFields(**fields))
    elif fields is not None and not isinstance(fields, TaskFields):
        raise SettingsError(f"fields are {fields!r}; they must be a TaskFields.")
