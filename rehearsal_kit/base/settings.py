"""What a person chooses before a run: frozen, typed, validated; and the table of what may change in it later.

History never lives here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rehearsal_kit.base.byte_units import parse_bytes
from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import (
    Real,
    Whole,
    Word,
    WordOrReal,
    require_integer,
    require_number,
    require_one_of,
    require_or,
    require_switch,
)
from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.base.steerable import OFF, Setting

POLICIES: Mapping[str, str] = {
    "quotas": "an equal share per group",
    "reservoir": "every sample ever seen equally likely",
    "fifo": "the newest",
}
"""Policies of the buffer, and what stays by each once it is full. Their classes are those of the same names
in `buffer/policies.py`."""

LOSS_AWARE = ("quotas", "reservoir")
"""Policies with which `Rehearsal.removal` may be "loss": which row goes is a choice among equals there."""

SCALINGS = ("none", "global", "linear", "sqrt")
"""What another number of ranks changes: see `Training.scaling`."""


SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in (
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
)}  # fmt: skip
"""The settings that may change while a run goes on, by name, in the order of ledgers and of the screen.

From it follows all that handles them: it checks the fields of `Training` and `Rehearsal`, the weights of
strategies and the command (`Steer`); the settings in force (`LiveSettings`) list and change what it names,
`Session.steer` takes it as keywords, and the dashboard makes its controls from it.
"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How every task is trained; the same for all strategies."""

    batch: int = 32
    """New samples per step (b), of all ranks together or of each: see `scaling`."""
    epochs: int = 3
    """Passes over the data of a task."""
    least_steps: int = 0
    """Fewest steps of a task: where its passes take fewer, as those of a small task on many ranks do, it is
    passed again until so many were taken."""
    learning_rate: float = 1e-3
    """The highest of the schedule; steerable while the run goes on."""
    schedule: str = "constant"
    """What becomes of the learning rate within a task: "constant", "cosine" (down to zero) or "cyclic" (up
    and down once an epoch between an eighth and the whole, as PtychoNN is trained)."""
    scaling: str = "global"
    """What another number of ranks changes. "global": batch, representatives, distillation and candidates are
    of all ranks together. Every rank takes an equal part of the batch and of the candidates, rounded up, of
    two new samples at least: where the batch can be divided so, every number of ranks takes the same steps.
    "none": they are of each rank, so that more ranks take fewer and larger steps at the same learning rate.
    "linear" and "sqrt": they are of each rank, and the learning rate is multiplied by the number of ranks,
    or by its square root, reached step by step within the first epoch of every task (Goyal et al., "Accurate,
    large minibatch SGD", arXiv 1706.02677, sections 2.1 and 2.2)."""
    warmup: float = 0.0
    """Share of the steps of a task over which the learning rate first grows from zero."""
    optimizer: str = "adam"
    """"adam", "adamw" or "sgd" (momentum 0.9)."""
    weight_decay: float = 0.0
    clip_norm: float | None = None
    """The gradient over all ranks is shortened to this norm where it is longer; None: never. Steerable while
    the run goes on, back to None by "off"."""
    precision: str = "auto"
    """Precision of the forward pass: "float32", never shortened to TF32, "bfloat16" (automatic mixed
    precision), or "auto": bfloat16 on GPUs that compute with it, float32 on all else."""
    deterministic: bool = True
    """Whether a GPU computes the same bits each time, so that ranks that begin again, and a replay on the
    same kind of GPU, come to the same weights; an operation of a network of yours that torch cannot compute
    so is an error then. False: by whatever is fastest. There is nothing to choose on CPUs: they always do."""
    bucket_mib: float | None = 25.0
    """Where a network is larger, ranks add up its gradients in buckets of so many MiB (of numbers of four
    bytes), each while the backward pass goes on with the layers before; None: all after it. On three ranks
    and more the last bits of the weights hang on it, so a run keeps to one."""
    average: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.99: the network that predicts, is
    evaluated, shown and exported. None: the weights themselves. Training goes on with these either way."""
    plastic_average: float | None = None
    """Decay of a second, quicker average, such as 0.9, smaller than `average`: it predicts nothing that is
    shown, but `CLSER` holds the network to either of the two. None: there is none."""
    evaluated: int = 8
    """Earlier tasks that are evaluated after every task, in turns, besides the newest; all are at the end. So
    evaluation does not grow with the square of the number of tasks."""

    stability_every: int = 0
    """Steps between two looks at earlier tasks within the first 50 steps of each: how much worse they become
    for a while. Each look predicts up to 32 watched samples of as many tasks as `evaluated` says; 0: none."""

    def __post_init__(self) -> None:
        make_plain(self)
        _require_steerable(self, "training")
        require_integer("epochs", self.epochs, low=1)
        require_integer("least_steps", self.least_steps, low=0, high=10**9)
        require_one_of("schedule", self.schedule, ("constant", "cosine", "cyclic"))
        require_one_of("scaling", self.scaling, SCALINGS)
        require_number("warmup", self.warmup, low=0.0, high=1.0)
        require_one_of("optimizer", self.optimizer, ("adam", "adamw", "sgd"))
        require_number("weight_decay", self.weight_decay, low=0.0, high=1.0)
        require_or(Real(1e-6, 1e6), "bucket_mib", self.bucket_mib, other=None)
        require_or(Real(0.0, 0.999999), "average", self.average, other=None)
        if self.plastic_average is not None:
            require_quicker(self.plastic_average, self.average)
        require_one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        require_switch("deterministic", self.deterministic)
        require_integer("evaluated", self.evaluated, low=0)
        require_integer("stability_every", self.stability_every, low=0)

    def rate_scale(self, ranks: int) -> float:
        """The factor by which so many ranks multiply the learning rate."""
        return {"linear": float(ranks), "sqrt": math.sqrt(ranks)}.get(self.scaling, 1.0)

    def factor(self, step: int, *, steps: int, steps_per_epoch: int, ranks: int = 1) -> float:
        """Factor that multiplies the learning rate at step `step` (from 0) of the `steps` of a task."""
        rising = self.warmup * steps
        warm = min(1.0, (step + 1) / rising) if rising else 1.0
        warm *= 1 + (self.rate_scale(ranks) - 1) * min(1.0, (step + 1) / steps_per_epoch)
        match self.schedule:
            case "cosine":
                return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            case "cyclic":
                # Smith, "Cyclical learning rates for training neural networks", WACV 2017: a triangle.
                phase = step % steps_per_epoch / steps_per_epoch
                return warm * (0.125 + 0.875 * (1 - abs(2 * phase - 1)))
        return warm


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """How much is remembered and how much of it comes back."""

    representatives: int = 8
    """Stored samples added to every mini-batch (r): in a session of all ranks together, unless
    `Training.scaling` says otherwise; of each rank where the buffer is used by itself. Steerable while the
    run goes on."""
    distillation: int = 0
    """Stored samples drawn a second time, independently, for distillation (r_d), of all ranks or of each
    likewise."""
    candidates: int = 8
    """Samples of every mini-batch offered to the buffer once it is full (c), of all ranks or of each
    likewise."""
    capacity: int | str = 2000
    """Held over all ranks together: a number of samples, or of bytes such as "512 MiB"."""
    policy: str = "quotas"
    """What stays once the buffer is full: one of the names in `POLICIES` of this file, which says what each
    of them keeps, such as "quotas" (an equal share per group)."""
    removal: str = "random"
    """Which row goes where the policy makes room: "random", each of its group (of all rows with "reservoir")
    equally likely; or "loss", a row with a small loss rather than one with a large loss, as what the network
    knows well is worth least (after the loss-aware reservoir sampling of Buzzega et al., "Rethinking
    experience replay: a bag of tricks for continual learning", arXiv 2010.05595). The loss is that of the
    last time a row was replayed. Rows that never were (all, where the strategy replays none), and the fifth
    of each group with the largest losses, in which broken frames and wrong labels are, go as at random. Needs
    a field `sample_id`. Not with "fifo", where the oldest goes."""
    draw: str = "samples"
    """What is equally likely to come back: every one of the stored "samples"; every one of their "groups";
    or every one of the "earlier" samples, those of groups that the newest mini-batches of all ranks are not
    of, as these are trained on anyway (a draw is begun a step ahead, and knows the mini-batch before that).
    Before there are others nothing comes back then, and never where every mini-batch has all groups."""
    half: tuple[str, ...] = ()
    """Fields stored as float16; "outputs" means all stored outputs."""
    outputs: bool = False
    """Whether outputs are stored even while the strategy does not ask for them, so that the run can be
    switched to one that does; costs memory."""

    def __post_init__(self) -> None:
        make_plain(self)
        _require_steerable(self, "rehearsal", but="capacity" if isinstance(self.capacity, str) else "")
        require_one_of("removal", self.removal, ("random", "loss"))
        if self.removal == "loss" and self.policy not in LOSS_AWARE:
            raise SettingsError(
                f"removal is 'loss' and policy {self.policy!r}, which leaves no choice of the row that goes; "
                f"take removal='random', or one of the policies {', '.join(map(repr, LOSS_AWARE))}."
            )
        require_one_of("draw", self.draw, ("samples", "groups", "earlier"))
        object.__setattr__(self, "half", tuple(self.half))
        if isinstance(self.capacity, str):
            parse_bytes("capacity", self.capacity)
        else:
            require_drawable(self.representatives, self.distillation, self.capacity)

    def samples(self, row_bytes: int) -> int:
        """The capacity in samples of this size, over all ranks; SettingsError if less than is drawn."""
        if not isinstance(self.capacity, str):
            return self.capacity
        samples = parse_bytes("capacity", self.capacity) // row_bytes
        if not samples:
            raise SettingsError(
                f"capacity is {self.capacity!r}, but one sample takes {row_bytes} bytes; give more."
            )
        require_drawable(self.representatives, self.distillation, samples)
        return samples


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What is kept against the loss of a worker, a kernel or a machine, and how hard is tried again."""

    checkpoint_s: float = 60.0
    """Seconds between two automatic checkpoints: the most that is trained twice after a failure. While
    one is written, what changes of the buffer is held twice, one row in eight at most."""
    keep_last: int = 3
    """Checkpoints kept, the newest."""
    keep_best: int = 1
    """And those with the lowest watched error."""
    restarts: int = 5
    """Times in a row that ranks are started again before the run is given up; counted anew once a checkpoint
    was written."""
    stall_s: float = 120.0
    """Seconds without progress after which a rank counts as stuck and its worker is restarted. Longer than
    reading a task takes."""
    wait_s: float = 120.0
    """Seconds that are waited for a lost worker to come back, and for ranks to meet."""
    fewest: int | None = None
    """Workers that are enough to go on where others have not come back within `wait_s`, as another branch, as
    `rk.resume` does on another number of them. Those that come back, or others in their place, are taken at
    the next end of a task, up to as many as the run was started with. None: it fails with the reason, and
    waits to be resumed."""

    def __post_init__(self) -> None:
        make_plain(self)
        require_number("checkpoint_s", self.checkpoint_s, low=0.0, high=1e9)
        require_integer("keep_last", self.keep_last, low=1)
        require_integer("keep_best", self.keep_best, low=0)
        require_integer("restarts", self.restarts, low=0)
        require_number("stall_s", self.stall_s, low=1.0, high=1e9)
        require_number("wait_s", self.wait_s, low=1.0, high=1e9)
        require_or(Whole(1), "fewest", self.fewest, other=None)
        if self.fewest is not None and not self.restarts:
            raise SettingsError(
                f"fewest is {self.fewest} and restarts 0, but whoever goes on without a worker is started "
                "again; allow a restart, or leave fewest out."
            )


def _require_steerable(settings: object, owner: str, *, but: str = "") -> None:
    """SettingsError for a value that the table does not allow, in all that it has of this owner `but` one."""
    for name, setting in SETTINGS.items():
        if setting.owner == owner and name != but:
            setting.require_of_owner(getattr(settings, name))


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


def require_quicker(plastic_average: object, average: float | None) -> None:
    """SettingsError unless these are the decays of two averages of which the first is the quicker one."""
    decay = require_number("plastic_average", plastic_average, low=0.0, high=0.999999)
    if average is None:
        raise SettingsError(
            f"plastic_average is {plastic_average!r}, but average is None, and the second average is only "
            "kept beside the first; give both, such as average=0.999 and plastic_average=0.9."
        )
    if decay >= average:
        raise SettingsError(
            f"plastic_average is {plastic_average!r} and average is {average!r}; the second average must be "
            "the quicker one, with the smaller decay, such as average=0.999 and plastic_average=0.9."
        )


def require_drawable(representatives: int, distillation: int, capacity: int) -> None:
    """SettingsError if a draw asks for more samples than the buffers of all ranks can ever hold."""
    if max(representatives, distillation) > capacity:
        raise SettingsError(
            f"representatives is {representatives} and distillation {distillation}, but the buffers of all "
            f"ranks together hold at most {capacity} samples, and none is drawn twice in one draw; ask for "
            "fewer, or raise capacity."
        )
