"""What ranks tell: records, immutable and made of plain values. A timeline is a list of them.

They travel as Dask events (msgpack) and lie as JSON lines in the run folder, so every number is a Python
int or float. Arrays never travel as records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.printable import printable
from rehearsal_kit.record.rank_records import (
    Ended,
    GenerationBegan,
    GenerationEnded,
    Joined,
    LeaseTaken,
    RunOver,
    Stalled,
)

UNTRAINED = -1
"""Stands for a task in `Evaluated.after`: evaluated with the initial weights."""


@dataclass(frozen=True, kw_only=True)
class InABranch:
    """A record of a position in a run: of the branch, 0 at first, and of the step that each kind names."""

    branch: int = 0


@dataclass(frozen=True, kw_only=True)
class StateChanged(InABranch):
    """What the run is doing from this step on: waiting, running or paused."""

    step: int
    state: str
    reason: str = ""
    """Why the ranks paused on their own; empty when a person asked for it."""


@dataclass(frozen=True, kw_only=True)
class Applied(InABranch):
    """A rank applied a command (or all refused it) before this step."""

    rank: int
    step: int
    number: int
    """The number the kernel gave the wish; 0 for a decision of rank 0."""
    kind: str
    settings: Mapping[str, float | str]
    """The settings in force from this step on."""
    digest: str
    """Digest of these settings."""
    batch: int = 0
    """New samples that each rank takes in a step from here on, which need not be those of the settings; 0
    where an earlier version wrote it."""
    refused: str = ""
    """Why all ranks refused it; empty when it was applied."""
    remark: str = ""
    """What it leaves as it is, and what can be done about that; empty where nothing is to be said."""
    holder: str = ""
    """The kernel whose wish it was; empty for a decision of rank 0."""
    ranks: int = 0
    """How many ranks say so, this one among them; 0 where an earlier version wrote it."""


@dataclass(frozen=True, kw_only=True)
class TaskArrived(InABranch):
    """A scan was accepted as task number `task` (counted from 0)."""

    step: int
    task: int
    name: str
    path: str
    """Path of its file; that of one in the run folder is its place in there."""
    training: int
    """Samples over all ranks."""
    watched: int
    test: int
    skipped: int
    """Frames that belong to no split: without beam, or their patch leaves the object or a split."""
    simulated: bool
    """Whether the counts of this scan are simulated."""


@dataclass(frozen=True, kw_only=True)
class TaskSetAside(InABranch):
    """A scan that will not be trained on, and why."""

    step: int
    name: str
    path: str
    reason: str
    task: int | None = None
    """Its number where it had one; None: it was refused before it became a task."""
    in_vain: bool = False
    """Whether the step before `step` was begun for it, and came to nothing."""


@dataclass(frozen=True, kw_only=True)
class TaskBegan(InABranch):
    """Training on a task begins and will take this many steps."""

    step: int
    task: int
    steps: int
    time: float


@dataclass(frozen=True, kw_only=True)
class Steps(InABranch):
    """Consecutive training steps, a few records per second; the sums are over these steps."""

    SUMS: ClassVar = ("seconds", "waited", "hidden", "representatives", "remote", "distilled", "rows")
    """Numbers that grow with the steps: of several records they are added, of a part they are that share.
    What becomes of any other is said in thinning.py."""

    first: int
    """Number of the first of these steps, over the whole run."""
    task: int
    losses: tuple[float, ...]
    """Mean loss over the augmented mini-batches of all ranks, one per step."""
    seconds: float
    waited: float
    """Seconds of these that rank 0 waited for representatives."""
    hidden: float
    """Seconds that rank 0 stored, drew and exchanged behind these steps without being waited for."""
    representatives: int
    """Representatives that rank 0 trained on in these steps."""
    remote: int
    """How many of them another rank had stored."""
    stored: int
    """Samples in the buffers of all ranks."""
    time: float
    terms: Mapping[str, float] = field(default_factory=dict)
    """Each term of the loss, weight included, on average over these steps."""
    distilled: int = 0
    """Samples that rank 0 compared with their stored outputs in these steps."""
    busy: tuple[float, ...] = ()
    """Seconds that each rank computed by itself in these steps, in order of rank."""
    outputs_age: float | None = None
    """Steps since these outputs were made, on average."""
    rows: int = 0
    """Samples of all ranks together that went through the network in these steps, new and old; 0: not told.
    Of rank 0 alone in runs of versions up to November 2026."""

    @property
    def count(self) -> int:
        """How many steps these are."""
        return len(self.losses)

    @property
    def at(self) -> Sequence[int]:
        """Numbers of the steps that `losses` are of."""
        return range(self.first, self.first + len(self.losses))


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated(InABranch):
    """How good the network is on the watched or test samples of one task, after another was trained."""

    step: int
    after: int
    """The last task that was trained; UNTRAINED: none, these are the initial weights."""
    task: int
    split: str
    """"watched" or "test"."""
    errors: Mapping[str, float]
    """Error by field: the share of wrong classes, or the mean absolute error; phase in rad, wrapped, its free
    constant fitted per scan."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics by field and metric: "label top-1", "phase SSIM" ..."""

    @property
    def error(self) -> float:
        """Sum over the fields."""
        return sum(self.errors.values())


@dataclass(frozen=True, kw_only=True)
class Unevaluated(InABranch):
    """Why there is no error of a task that was to be evaluated; told once, until it can be again."""

    step: int
    after: int
    """The last task that was trained; UNTRAINED: none."""
    task: int
    split: str
    """"watched" or "test"."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class TaskEnded(InABranch):
    """All steps of a task are done."""

    step: int
    task: int
    seconds: float
    """Spent in its training steps, evaluation and reading left out."""
    time: float
    weights: str = ""
    """Fingerprint of the weights."""


@dataclass(frozen=True, kw_only=True)
class StabilityLooked(InABranch):
    """What became of earlier tasks in the first steps of one: their mean error on a few watched samples."""

    step: int
    task: int
    before: float
    """That error before its first step."""
    worst: float
    """The largest after it; that before, if none was larger."""
    at: int
    """The number of its steps after which that was; 0: none was larger."""

    @property
    def gap(self) -> float | None:
        """The largest error relative to that before: 1 where nothing became worse; None where that was 0."""
        if self.worst == self.before:
            return 1.0
        return self.worst / self.before if self.before else None


@dataclass(frozen=True, kw_only=True)
class TasksReordered(InABranch):
    """The tasks from `first` on were numbered anew: these, in this order."""

    step: int
    first: int
    order: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Noted(InABranch):
    """A person, or the run itself, wanted this to be remembered."""

    step: int
    text: str
    time: float


@dataclass(frozen=True, kw_only=True)
class CheckpointTaken(InABranch):
    """All that the run is before this step was copied, to be written."""

    step: int
    checkpoint: int
    weights: str = ""
    """Fingerprint of the weights; only of versions up to November 2026."""
    sums: str = ""
    """Sums that stand for the weights, the same on all ranks (`base/tensor_fingerprint.py`)."""
    time: float


@dataclass(frozen=True, kw_only=True)
class CheckpointKept:
    """A checkpoint is whole on disk."""

    checkpoint: int
    bytes: int
    seconds: float
    """Seconds from the copy to the last byte on disk, beside training."""
    error: float | None
    """Mean watched error of the tasks that had been evaluated last; None: none had."""
    removed: tuple[int, ...] = ()
    """Older checkpoints that made room."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed:
    """A checkpoint could not be written, or not be used; the run goes on without it."""

    checkpoint: int
    """0: none can be used, and the run begins from its very beginning."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class NotKept:
    """What only plots need could not be written or made; the run goes on without it."""

    what: str
    """"timeline" or "previews"."""
    reason: str
    """Empty: it can be written again; what came in between is missing."""
    time: float


@dataclass(frozen=True, kw_only=True)
class Restored(InABranch):
    """All ranks begin at this position again."""

    step: int
    checkpoint: int
    """0: none, from the very beginning."""
    generation: int
    time: float


@dataclass(frozen=True, kw_only=True)
class BranchBegan:
    """The run goes on from a checkpoint as another branch.

    A person rolled back; or ranks began again that are of another number, or that miss some data.
    """

    branch: int
    """The new one."""
    step: int
    checkpoint: int
    parent: int
    """The branch that was left, before step `left`."""
    left: int
    time: float
    tasks: int | None = None
    """How many tasks there are, where those beyond arrive again; None where all that arrived stay."""
    aside: tuple[int, ...] = ()
    """Numbers of those among these `tasks` that are set aside."""


Record = (
    Joined
    | StateChanged
    | Applied
    | TaskArrived
    | TaskSetAside
    | TaskBegan
    | Steps
    | Evaluated
    | Unevaluated
    | TaskEnded
    | StabilityLooked
    | TasksReordered
    | Noted
    | CheckpointTaken
    | CheckpointKept
    | CheckpointFailed
    | NotKept
    | Restored
    | BranchBegan
    | GenerationBegan
    | GenerationEnded
    | Stalled
    | LeaseTaken
    | RunOver
    | Ended
)
_KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in Record.__args__}


def to_plain(record: Record) -> dict[str, Any]:
    """The record as a dictionary of plain values, with its type as `record`; all text in it can be printed.

    Everything that people read comes through here: names of files may be any bytes, which neither Dask's
    messages nor a terminal take.
    """
    values = {name: printable(value) for name, value in asdict(record).items()}
    return {"record": type(record).__name__, **values}


def from_plain(plain: Mapping[str, Any]) -> Record:
    """The record that a dictionary of plain values describes; ValueError or TypeError if that is none."""
    if not isinstance(plain, Mapping):
        raise SettingsError(f"a record is {plain!r}; it must be a dictionary of its values by name.")
    values = dict(plain)
    kind = _KINDS.get(values.pop("record", ""))
    if kind is None:
        raise SettingsError(f"record type {plain.get('record')!r} is unknown; known are {', '.join(_KINDS)}.")
    record: Record = record_of(kind, values)
    return record
