"""Whole training steps with and without rehearsal, in turns, on one of several real ranks."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.bench.clock import now
from rehearsal_kit.bench.ranks.subjects import Subject
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.learning.gpu_arithmetic import gpu_arithmetic
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.strategies.replay import ER

SEED = 0
POOL = 4
"""Different mini-batches, used again and again."""
TASKS = 4
PROBES = 3
"""Steps by which the length of a step is judged."""
MARGIN = 1.2
"""Factor by which a step must be longer than asked for: the machine may be busier now than later."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is compared; the same on all ranks."""

    batch: int
    """New samples per step with rehearsal (b); without it b + r."""
    representatives: int
    """Per rank (r)."""
    candidates: int
    """Per rank (c)."""
    capacity: int
    """Samples per rank."""
    pairs: int
    """Steps of either kind that count."""
    warm_up: int
    """Pairs before these."""
    least_s: float
    """How long a step must take; the first of `subjects` for which it does is trained."""
    subjects: tuple[Subject, ...]
    devices: tuple[str, ...]
    """Device of each rank."""
    deterministic: bool = True
    """Whether a GPU computes the same bits each time, as in `Training`."""


@dataclass(frozen=True)
class RankSteps:
    """What one rank measured, in seconds, pair by pair."""

    subject: str
    """What was trained."""
    row_bytes: int
    with_s: list[float]
    """Whole steps with rehearsal: from taking the representatives until the background job has ended, too."""
    waited_s: list[float]
    """Waiting for the background job in the steps with rehearsal: at the end, and inside `advance`."""
    without_s: list[float]
    """Whole steps without, on as many samples."""
    worked_s: float
    """All background jobs of these steps together."""


def measure_steps(groups: ProcessGroups, trial: Trial) -> RankSteps:
    """Measure steps with and without rehearsal on one rank; all ranks call it together."""
    device = trial.devices[groups.rank]
    with gpu_arithmetic(device, deterministic=trial.deterministic):
        return _measured(groups, trial, device)


def _measured(groups: ProcessGroups, trial: Trial, device: str) -> RankSteps:
    torch.manual_seed(SEED + groups.rank)
    if device != "cpu":
        torch.cuda.set_device(device)
    subject, learner = _long_enough(groups, trial, device)
    rehearsal = Rehearsal(
        representatives=trial.representatives,
        candidates=trial.candidates,
        capacity=trial.capacity * groups.ranks,
    )
    layout = RowLayout.of(subject.samples(0))
    exchange = GroupExchange(groups)
    with DistributedBuffer(layout, rehearsal, seed=SEED, exchange=exchange, device=device) as buffer:
        arms = _Arms(trial, subject, learner=learner, buffer=buffer)
        arms.fill()
        for number in range(trial.warm_up):
            arms.pair(number)
        worked = buffer.worked
        pairs = [arms.pair(number) for number in range(trial.pairs)]
        # `worked` grows when the next step begins: it is one job behind at both ends.
        return RankSteps(
            subject.name,
            layout.row_bytes,
            with_s=[pair.with_s for pair in pairs],
            waited_s=[pair.waited_s for pair in pairs],
            without_s=[pair.without_s for pair in pairs],
            worked_s=buffer.worked - worked,
        )


@dataclass(frozen=True)
class _Pair:
    with_s: float
    waited_s: float
    without_s: float


class _Arms:
    """The two kinds of steps, of the same network on the same mini-batches."""

    def __init__(
        self, trial: Trial, subject: Subject, *, learner: Learner, buffer: DistributedBuffer
    ) -> None:
        self._trial = trial
        self._subject = subject
        self._learner = learner
        self._buffer = buffer
        self._whole = [_on(learner.device, subject, trial.batch + trial.representatives) for _ in range(POOL)]
        self._new = [{name: t[: trial.batch] for name, t in batch.items()} for batch in self._whole]
        self._steps = 0

    def fill(self) -> None:
        """Offer until the store is full, and one step further: offers are stored a step later."""
        for number in range(-(-self._trial.capacity // self._trial.batch) + 2):
            self._buffer.advance()
            self._buffer.offer(self._new[number % POOL], group=number % TASKS)
        self._buffer.state()

    def pair(self, number: int) -> _Pair:
        """One step of each kind; who begins alternates."""
        if number % 2:
            without_s = self._without()
            return _Pair(*self._with(), without_s)
        return _Pair(*self._with(), self._without())

    def _with(self) -> tuple[float, float]:
        self._steps += 1
        new, waited = self._new[self._steps % POOL], self._buffer.waited
        began = now(self._learner.device)
        drawn = self._buffer.advance()
        samples = drawn.samples if drawn is not None else {}
        self._train(MiniBatch(new, samples, {}))
        self._buffer.offer(new, group=self._steps % TASKS)
        trained = now(self._learner.device)
        # The next step of a run would wait here. It also keeps the job out of the step without rehearsal.
        self._buffer.state()
        ended = time.perf_counter()
        return ended - began, ended - trained + self._buffer.waited - waited

    def _without(self) -> float:
        self._steps += 1
        began = now(self._learner.device)
        self._train(MiniBatch(self._whole[self._steps % POOL], {}, {}))
        return now(self._learner.device) - began

    def _train(self, batch: MiniBatch) -> None:
        expected = self._trial.batch + self._trial.representatives
        rows = sum(len(part[self._subject.inputs]) for part in batch.parts if part)
        if rows != expected:
            raise RehearsalKitError(
                f"a mini-batch has {rows} samples instead of {expected}: the store was not full. "
                "This is an error of the benchmark."
            )
        self._learner.launch(batch, strategy=ER(), step=self._steps)
        self._learner.read(but=self._learner.lag)


def _long_enough(groups: ProcessGroups, trial: Trial, device: str) -> tuple[Subject, Learner]:
    """The first subject, from small to large, whose step is long enough; the last one if none is."""
    samples = trial.batch + trial.representatives
    for subject in trial.subjects:
        training = Training(learning_rate=1e-4, precision="float32")
        learner = Learner(subject.build(), training, device=device, groups=groups)
        learner.know(learner.meet(subject.samples(1), subject.inputs))
        if _step_s(groups, subject, learner=learner, samples=samples) >= MARGIN * trial.least_s:
            break
    return subject, learner


def _step_s(groups: ProcessGroups, subject: Subject, *, learner: Learner, samples: int) -> float:
    """Shortest of some steps, mean over the ranks: one number for all of them, so that they choose alike."""
    batch, lengths = _on(learner.device, subject, samples), []
    for _ in range(1 + PROBES):
        began = time.perf_counter()
        # It reads at its end what it came to: on a CUDA device, too, the optimizer has then taken it.
        learner.step(MiniBatch(batch, {}, {}), strategy=ER())
        lengths.append(time.perf_counter() - began)
    shortest = torch.tensor([min(lengths[1:])], dtype=torch.float64, device=learner.device)
    return float(groups.sum(shortest).item()) / groups.ranks


def _on(device: str, subject: Subject, count: int) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in subject.samples(count).items()}
