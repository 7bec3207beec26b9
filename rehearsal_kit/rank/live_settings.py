"""The settings in force: those that commands may change while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rehearsal_kit.base.settings import Rehearsal, digest
from rehearsal_kit.buffer.row_layout import RowLayout, Samples
from rehearsal_kit.learning.stored_outputs import NO_MODEL, named_halves, with_outputs
from rehearsal_kit.learning.strategies.choice import plain_strategy, require_suited, switched
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.record.commands import Steer


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """The same on all ranks at every step."""

    learning_rate: float
    """Learning rate before the schedule."""
    batch: int
    """New samples per rank and step (b)."""
    rehearsal: Rehearsal
    strategy: Strategy

    @staticmethod
    def of(spec: RunSpec) -> LiveSettings:
        """What a run begins with."""
        return LiveSettings(
            learning_rate=spec.training.learning_rate,
            batch=spec.training.batch,
            rehearsal=spec.rehearsal,
            strategy=spec.strategy,
        )

    @property
    def plain(self) -> dict[str, float | str]:
        """The settings as plain values, for records and people."""
        values: dict[str, float | str] = {
            "learning_rate": self.learning_rate,
            "batch": self.batch,
            "representatives": self.rehearsal.representatives,
            "distillation": self.rehearsal.distillation,
            "candidates": self.rehearsal.candidates,
            "policy": self.rehearsal.policy,
        }
        if not isinstance(self.rehearsal.capacity, str):
            values["capacity"] = self.rehearsal.capacity
        return {**values, **plain_strategy(self.strategy)}

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the plain values."""
        return digest(self.plain)

    @property
    def representatives(self) -> int:
        """What the strategy draws of the first draw."""
        return self.rehearsal.representatives if self.strategy.replays else 0

    @property
    def distillation(self) -> int:
        """What the strategy draws of the second draw."""
        return self.rehearsal.distillation if self.strategy.distils else 0

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
        names = ("representatives", "capacity", "distillation", "candidates", "policy")
        wanted = {name: value for name in names if (value := getattr(command, name)) is not None}
        rate, batch = command.learning_rate, command.batch
        steered = LiveSettings(
            learning_rate=self.learning_rate if rate is None else rate,
            batch=self.batch if batch is None else batch,
            rehearsal=replace(self.rehearsal, **wanted),
            strategy=switched(self.strategy, command),
        )
        require_suited(steered.strategy, steered.rehearsal)
        return steered
