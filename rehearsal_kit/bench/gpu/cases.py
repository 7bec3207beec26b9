"""What `bench gpu` trains and how long: a network, its rows, and the limits that its figures are held to."""

from __future__ import annotations

from dataclasses import dataclass

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.bench.ranks.subjects import Ptychography, ResNet18, Subject
from rehearsal_kit.data.tensor_tasks import TensorTask
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.replay import AGEM, ER
from rehearsal_kit.learning.strategies.strategy import Strategy

TESTED = 2
"""Test samples of a task: they are evaluated before anything is measured."""
STALL_S = 0.05
"""Most seconds for which a checkpoint of PtychoNN may hold training up."""
GROUP = "label"
ENDLESS = 10**6
"""Epochs of a task that nobody waits for."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network with its rows, and what else is measured with it."""

    subject: Subject
    batch: int
    """New samples per step with rehearsal (b); without it b + r."""
    representatives: int
    """Per rank (r)."""
    candidates: int
    """Per rank (c)."""
    capacity: int
    """Samples per rank."""
    shard: int
    """Training samples per rank: whole mini-batches, with rehearsal and without. Of these a buffer holds a
    small part, so that most candidates are new to it, as in a first epoch."""
    limit: float
    """Largest ratio of the steps with rehearsal to those without."""
    strategies: tuple[Strategy, ...] = (ER(),)
    """Whose synchronisations are counted; ER's is the one that is timed."""
    stall_limit_s: float | None = None
    """Most seconds that a checkpoint holds training up; None: there is no limit."""
    frames: int = 0
    """Watched samples of the task, for an evaluation that is measured; 0: none is."""

    @property
    def rows(self) -> int:
        """Samples of an augmented mini-batch."""
        return self.batch + self.representatives

    @property
    def watched(self) -> int:
        """Watched samples of the task."""
        return max(self.frames, TESTED)

    @property
    def evaluated(self) -> int:
        """Samples of an evaluation of the task; 0 where it is not measured."""
        return self.watched + TESTED if self.frames else 0

    def training(self, *, rehearsed: bool) -> Training:
        """The settings of a session with rehearsal, or of one with as many new samples."""
        batch = self.batch if rehearsed else self.rows
        return Training(batch=batch, epochs=ENDLESS, learning_rate=1e-4, scaling="none")

    def rehearsal(self, strategy: Strategy, ranks: int) -> Rehearsal:
        """The settings of the buffer of all ranks."""
        return Rehearsal(
            representatives=self.representatives,
            distillation=self.representatives if strategy.distils else 0,
            candidates=self.candidates,
            capacity=self.capacity * ranks,
        )

    def task(self, ranks: int) -> TensorTask:
        """Random samples for so many ranks."""
        training, watched, test = (
            self.subject.samples(count) for count in (self.shard * ranks, self.watched, TESTED)
        )
        return TensorTask(
            name=self.subject.name,
            inputs=self.subject.inputs,
            group=GROUP if GROUP in training else None,
            training=training,
            watched=watched,
            test=test,
        )


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long something is measured."""

    rounds: int
    """Blocks of each kind; six at least, for an interval of their median."""
    steps: int
    """Steps of a block."""
    counted: int
    """Steps whose synchronisations are counted."""
    checkpoints: int
    """Checkpoints that are taken; six at least, as above."""
    evaluations: int
    """Each of them lasts for seconds, and there is no interval."""
    calls: int
    """Calls of a block of anything else."""
    copied: int
    """Bytes of a copy between host and device."""


FULL = Effort(rounds=16, steps=25, counted=5, checkpoints=6, evaluations=1, calls=25, copied=64 * MIB)
QUICK = Effort(rounds=2, steps=1, counted=1, checkpoints=1, evaluations=1, calls=1, copied=MIB)
ALL = (ER(), DERpp(), AGEM())
CASES = (
    Case(
        subject=Ptychography("paper", 128),
        batch=16,
        representatives=24,
        candidates=8,
        capacity=160,
        shard=640,
        limit=1.02,
        stall_limit_s=STALL_S,
        strategies=ALL,
    ),
    Case(
        subject=Ptychography("paper", 256),
        batch=16,
        representatives=24,
        candidates=8,
        capacity=160,
        shard=640,
        limit=1.01,
        stall_limit_s=STALL_S,
        frames=1000 - TESTED,
    ),
    Case(
        subject=ResNet18(224),
        batch=56,
        representatives=7,
        candidates=14,
        capacity=240,
        shard=1008,
        limit=1.01,
    ),
)
"""Values of b, r and c as published (Bouvier et al. 2025), for ptychography and for classification."""
QUICK_CASES = (
    Case(
        subject=Ptychography("small", 16),
        batch=4,
        representatives=4,
        candidates=4,
        capacity=8,
        shard=16,
        limit=1.02,
        stall_limit_s=STALL_S,
        strategies=ALL,
        frames=4,
    ),
    Case(
        subject=ResNet18(32, width=4),
        batch=4,
        representatives=4,
        candidates=4,
        capacity=8,
        shard=16,
        limit=1.01,
    ),
)
