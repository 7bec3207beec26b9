"""Training steps of several strategies in turns, on one of several real ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.bench.clock import now
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.row_layout import IDENTITY, Samples
from rehearsal_kit.buffer.states import Representatives, Round
from rehearsal_kit.compare.arms import Arm
from rehearsal_kit.compare.streams import CLASSES, CompareStream, stream_named
from rehearsal_kit.learning.gpu_arithmetic import gpu_arithmetic
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.stored_outputs import for_layout
from rehearsal_kit.learning.strategies.choice import OURS
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.live_settings import LiveSettings

SEED = 0
POOL = 8
"""Different mini-batches, used again and again."""
AVERAGE, PLASTIC_AVERAGE = 0.99, 0.9
"""Decays of the averages of the weights, for strategies that ask for them."""


@dataclass(frozen=True)
class Turns:
    """What is measured; the same on all ranks."""

    stream: str
    rounds: int
    """Steps of each strategy that count."""
    warm_up: int
    """Rounds before these."""
    capacity: int
    """Samples over all ranks."""
    device: str = "cpu"
    arms: tuple[str, ...] = ()
    """Strategies with their settings, as `compare` calls them; Incremental is measured beside them. Empty:
    all of ours that suit the stream, with its settings."""

    def measured(self) -> list[Arm]:
        """What is measured, Incremental first."""
        names = self.arms or measured_on(stream_named(self.stream))
        arms = [Arm.parsed(name) for name in ("Incremental", *names)]
        return list(dict.fromkeys(arms))

    def require_drawable(self) -> None:
        """SettingsError for a strategy that asks for more samples than the buffer holds that is measured."""
        stream = stream_named(self.stream)
        for arm in self.measured():
            live_settings = LiveSettings(
                training=arm.training(stream), rehearsal=arm.rehearsal(stream), strategy=arm.made(stream)
            )
            sizes = live_settings.sizes(1)
            if max(sizes.representatives, sizes.distillation) > self.capacity:
                raise SettingsError(
                    f"strategy {arm.name!r} draws r={sizes.representatives} and rd={sizes.distillation} "
                    f"samples, but its buffer holds {self.capacity} here, and none is drawn twice in one "
                    "draw; give smaller numbers."
                )

    def device_of(self, rank: int) -> str:
        """That of this rank, as torch calls it."""
        return self.device if self.device == "cpu" else f"{self.device}:{rank}"


def measured_on(stream: CompareStream) -> tuple[str, ...]:
    """All of ours that suit a stream and whose step is not that of Incremental on samples of other tasks."""
    return tuple(
        kind.__name__
        for kind in OURS
        if (kind.tasks is Strategy.tasks or kind.replays or kind.distils)
        and (stream.measure == CLASSES or not kind.for_classes)
    )


def measure_turns(groups: ProcessGroups, turns: Turns) -> dict[str, list[float]]:
    """Seconds of each step by strategy, round by round; all ranks call it together."""
    with gpu_arithmetic(turns.device_of(groups.rank), deterministic=True):
        return _measured(groups, turns)


def _measured(groups: ProcessGroups, turns: Turns) -> dict[str, list[float]]:
    torch.manual_seed(SEED + groups.rank)
    stream = stream_named(turns.stream)
    arms = {each.name: _Turn(each, stream, groups=groups, turns=turns) for each in turns.measured()}
    try:
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(turns.warm_up + turns.rounds):
            # Who begins changes from round to round: the first step finds the caches cold.
            order = [*arms][number % len(arms) :] + [*arms][: number % len(arms)]
            for name in order:
                seconds = arms[name].step()
                if number >= turns.warm_up:
                    times[name].append(seconds)
        return times
    finally:
        for arm in arms.values():
            arm.close()


class _Turn:
    """One strategy with a network, an optimizer and a full buffer of its own."""

    def __init__(self, arm: Arm, stream: CompareStream, *, groups: ProcessGroups, turns: Turns) -> None:
        self._device = turns.device_of(groups.rank)
        strategy, training = arm.made(stream), replace(arm.training(stream), precision="float32")
        if strategy.asks_average and training.average is None:
            training = replace(training, average=AVERAGE)
        if strategy.asks_plastic_average and training.plastic_average is None:
            training = replace(training, plastic_average=PLASTIC_AVERAGE)
        self._live_settings = LiveSettings(
            training=training,
            rehearsal=replace(arm.rehearsal(stream), capacity=turns.capacity),
            strategy=strategy,
        )
        self._sizes = self._live_settings.sizes(groups.ranks)
        batch = self._sizes.batch
        self._pool = [_samples(stream, number, rank=groups.rank, count=batch) for number in range(POOL)]
        self._learner = Learner(stream.small(SEED), training, device=self._device, groups=groups)
        self._inputs = "image" if stream.measure == CLASSES else "diffraction"
        signature = self._learner.meet(self._pool[0], self._inputs)
        self._learner.know(signature)
        self._steps = 0
        self._buffer = None
        if self._live_settings.needs_buffer:
            layout, rehearsal = self._live_settings.stored(self._pool[0], signature.no_outputs("cpu"))
            exchange = GroupExchange(groups)
            self._buffer = DistributedBuffer(
                layout, rehearsal, seed=SEED, exchange=exchange, device=self._device
            )
            self._fill(self._buffer, -(-turns.capacity // groups.ranks // batch) + 2)

    def step(self) -> float:
        """Seconds of one step, the background work that it began included."""
        self._steps += 1
        new, strategy = self._pool[self._steps % POOL], self._live_settings.strategy
        began = now(self._device)
        drawn = None if self._buffer is None else self._advance(self._buffer)
        draws = ({}, {}) if drawn is None else (drawn.samples, drawn.distillation)
        batch = MiniBatch.augmented(new, *draws, strategy=strategy)
        stepped = self._learner.launch(batch, strategy=strategy)
        self._learner.read(but=self._learner.lag)
        if self._buffer is not None:
            self._offer(self._buffer, new, stepped.outputs)
            self._buffer.state()  # waits: what is under way would slow down the next strategy's step
        return now(self._device) - began

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.close()

    def _advance(self, buffer: DistributedBuffer) -> Representatives | None:
        return buffer.advance(
            Round(
                step=self._steps,
                representatives=self._sizes.representatives,
                distillation=self._sizes.distillation,
                candidates=self._sizes.candidates,
            )
        )

    def _offer(self, buffer: DistributedBuffer, new: Samples, outputs: Samples) -> None:
        stored = for_layout(new, outputs, layout=buffer.layout, version=self._steps)
        buffer.offer(stored, group=self._steps % 2, copy=False)  # as a session does

    def _fill(self, buffer: DistributedBuffer, mini_batches: int) -> None:
        for _ in range(mini_batches):
            self._steps += 1
            new = self._pool[self._steps % POOL]
            self._advance(buffer)
            self._offer(buffer, new, self._learner.predict(new[self._inputs]))
        buffer.state()


def _samples(stream: CompareStream, number: int, *, rank: int, count: int) -> dict[str, torch.Tensor]:
    identity = torch.arange(count) + count * (number + POOL * rank)
    values = torch.rand(count, *stream.shape)
    if stream.measure == CLASSES:
        return {"image": values, "label": torch.randint(10, (count,)), IDENTITY: identity}
    fields = {name: torch.rand(count, *stream.shape) for name in ("amplitude", "phase")}
    return {"diffraction": values, **fields, IDENTITY: identity}
