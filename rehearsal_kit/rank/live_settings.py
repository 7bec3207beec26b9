"""The settings in force: those that commands may change while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rehearsal_kit.base.digests import digest
from rehearsal_kit.base.settings import SETTINGS, Rehearsal, Training
from rehearsal_kit.base.steerable import OFF, Value
from rehearsal_kit.buffer.row_layout import RowLayout, Samples
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.learning.stored_outputs import NO_MODEL, named_halves, with_outputs
from rehearsal_kit.learning.strategies.choice import (
    plain_strategy,
    require_classes,
    require_stored,
    require_suited,
    switched,
)
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_spec import RunSettings
from rehearsal_kit.record.commands import Steer


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """Samples of one rank in one step."""

    batch: int
    """New samples (b)."""
    representatives: int
    """Drawn for the next step (r)."""
    distillation: int
    """Drawn a second time for the next step (r_d)."""
    candidates: int
    """Offered to a full buffer (c)."""
    fewer: tuple[int, int] = (0, 0)
    """How many of the last ranks draw one sample less, in each of these two draws."""


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """The same on all ranks at every step."""

    training: Training
    """The learning rate in it is that before the schedule."""
    rehearsal: Rehearsal
    strategy: Strategy
    off: frozenset[str] = frozenset()
    """Settings that were steered to `OFF`; checkpoints tell it, as the run may have begun with a number."""

    @staticmethod
    def of(spec: RunSettings) -> LiveSettings:
        """What a run begins with."""
        return LiveSettings(training=spec.training, rehearsal=spec.rehearsal, strategy=spec.strategy)

    @property
    def plain(self) -> dict[str, Value]:
        """The settings that may change as plain values, for records and people.

        One that is not of the kind that can be steered to, as a capacity in bytes, is not among them, nor is
        one that has been None from the beginning.
        """
        values: dict[str, Value] = {}
        for name, setting in SETTINGS.items():
            if setting.owner in ("training", "rehearsal"):
                value = OFF if name in self.off else getattr(getattr(self, setting.owner), name)
                if setting.is_plain(value):
                    values[name] = value
        return {**values, **plain_strategy(self.strategy)}

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the plain values."""
        return digest(self.plain)

    def sizes(self, ranks: int) -> StepSizes:
        """What each of so many ranks takes, as far as the strategy has a use for it.

        Two new samples at least where the mini-batch has them: batch norm cannot do with one.
        """
        strategy, rehearsal, batch = self.strategy, self.rehearsal, self.training.batch
        parts = ranks if self.training.scaling == "global" else 1
        replayed = rehearsal.representatives if strategy.replays else 0
        again = rehearsal.distillation if strategy.distils and not strategy.shares_draw else 0
        return StepSizes(
            batch=max(-(-batch // parts), min(2, batch)),
            representatives=-(-replayed // parts),
            distillation=-(-again // parts),
            candidates=-(-rehearsal.candidates // parts),
            fewer=(-replayed % parts, -again % parts),
        )

    def scaled(self, ranks: int) -> str:
        """What becomes of sizes and learning rate on so many ranks, in words; empty where nothing does."""
        training, sizes = self.training, self.sizes(ranks)
        if ranks == 1:
            return ""
        if training.scaling == "global":
            new, again = sizes.batch * ranks, self.sizes(1).representatives
            together = f"{new} together, as ranks take equal parts, of two new samples at least"
            return (
                f"scaling global: of {training.batch} new samples a step each of {ranks} ranks takes "
                f"{sizes.batch}, with its part of {again} representatives; "
                f"{'as many steps as on one rank' if new == training.batch else together}"
            )
        if training.scaling in ("linear", "sqrt"):
            return (
                f"scaling {training.scaling}: the learning rate is multiplied by up to "
                f"{training.rate_scale(ranks):.3g} on {ranks} ranks, within the first epoch of every task"
            )
        return ""

    @property
    def needs_buffer(self) -> bool:
        """Whether samples are to be stored."""
        return self.strategy.replays or self.strategy.distils or self.rehearsal.outputs

    @property
    def needs_outputs(self) -> bool:
        """Whether outputs are to be stored with them."""
        return self.strategy.distils or self.rehearsal.outputs

    def stored(self, samples: Samples, no_outputs: Samples) -> tuple[RowLayout, Rehearsal]:
        """What a buffer for these samples is made for: its rows and settings.

        samples: of the first task, (sample, ...). no_outputs: the network's outputs of no sample, (0, ...).
        """
        fields = {name: tensor[:0] for name, tensor in samples.items()}
        if self.needs_outputs:
            fields = with_outputs(fields, no_outputs, version=NO_MODEL)
        rehearsal = replace(self.rehearsal, half=named_halves(self.rehearsal.half, fields))
        return RowLayout.of(fields, half=rehearsal.half), rehearsal

    def steered(self, command: Steer) -> LiveSettings:
        """What will be in force after a command; SettingsError if that cannot be."""
        steered = LiveSettings(
            training=replace(self.training, **command.values("training")),
            rehearsal=replace(self.rehearsal, **command.values("rehearsal")),
            strategy=switched(self.strategy, command),
            off=(self.off - {name for name, _ in command.given}) | command.off,
        )
        require_suited(steered.strategy, steered.rehearsal, steered.training)
        return steered

    def require_after(
        self, before: LiveSettings, *, signature: Signature | None, layout: RowLayout | None
    ) -> None:
        """SettingsError where samples or buffer of a run do not give what the strategy in force now needs.

        signature, layout: of the samples and of the buffer; None where there are none yet.
        """
        if self.strategy.name != before.strategy.name and signature is not None:
            require_stored(self.strategy, layout)
            require_classes(self.strategy, signature)
