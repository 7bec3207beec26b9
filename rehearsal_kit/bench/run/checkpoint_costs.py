"""What a checkpoint costs the training beside which it is taken and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.bench.run.boundaries import Boundaries
from rehearsal_kit.bench.spread import Spread
from rehearsal_kit.bench.table import Table
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import Stop, TakeCheckpoint, Wish
from rehearsal_kit.record.records import CheckpointKept, Record
from rehearsal_kit.record.run_folder import RunFolder

LIMIT = 0.03
EVERY_S = 60.0


@dataclass(frozen=True)
class Windows:
    """Steps in turns: a window with a checkpoint at its first step, one without."""

    scan: Path
    folder: Path
    size: str
    """Size of PtychoNN."""
    side: int
    capacity: int
    steps: int
    """Steps of a window: as many as a checkpoint is being written beside."""
    windows: int
    """Number of windows of either kind."""


@dataclass(frozen=True)
class CheckpointCost:
    """What checkpoints cost on rank 0, which all others wait for."""

    windows: Windows
    ranks: int
    with_s: tuple[float, ...]
    """Seconds of each window with a checkpoint."""
    without_s: tuple[float, ...]
    """Seconds of the window before it."""
    held_s: tuple[float, ...]
    """Seconds that a step before which one was taken was longer than those without usually are."""
    bytes: int
    written_s: tuple[float, ...]
    """Seconds from the copy to the last byte on disk."""

    @property
    def cost_s(self) -> Spread:
        """Seconds that one checkpoint adds to the training, window by window."""
        return Spread.of([a - b for a, b in zip(self.with_s, self.without_s, strict=True)])

    def line(self) -> tuple[str, ...]:
        """This cost's line of the table."""
        share = self.cost_s.median / EVERY_S
        return (
            f"PtychoNN {self.windows.size}, {self.windows.capacity} samples of {self.windows.side} x "
            f"{self.windows.side}, {self.ranks} ranks",
            f"{self.bytes / MIB:.0f}",
            f"{Spread.of(self.written_s).median * 1e3:.0f}",
            f"{Spread.of(self.without_s).median / self.windows.steps * 1e3:.0f}",
            Spread.of([1e3 * s for s in self.held_s]).text(0),
            Spread(*(1e3 * s for s in (self.cost_s.low, self.cost_s.median, self.cost_s.high))).text(0),
            f"{100 * share:.2f}",
            "within" if share <= LIMIT else "above",
        )

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "size": self.windows.size,
            "capacity": self.windows.capacity,
            "ranks": self.ranks,
            "with_s": list(self.with_s),
            "without_s": list(self.without_s),
            "held_s": list(self.held_s),
            "written_s": list(self.written_s),
            "bytes": self.bytes,
        }


def measure_checkpoints(groups: ProcessGroups, windows: Windows) -> CheckpointCost:
    """Train with checkpoints now and then; on every rank."""
    plan = _Clock(windows)
    spec = RunSpec(
        run=RunFolder(windows.folder),
        seed=0,
        network=PtychoNN(size=windows.size),
        strategy=ER(),
        preparation=Preparation(size=windows.side),
        training=Training(batch=16, epochs=10**6, scaling="none"),
        rehearsal=Rehearsal(representatives=24, candidates=16, capacity=windows.capacity),
        recovery=Recovery(checkpoint_s=1e9, keep_last=1, keep_best=0),
    )
    Rank(spec, groups, mailbox=plan, publish=plan.hear).run()
    with_s, without_s = plan.measured()
    return CheckpointCost(
        windows=windows,
        ranks=groups.ranks,
        with_s=tuple(with_s),
        without_s=tuple(without_s),
        held_s=tuple(plan.held()),
        bytes=max((record.bytes for record in plan.kept), default=0),
        written_s=tuple(record.seconds for record in plan.kept),
    )


def checkpoint_table(costs: Sequence[CheckpointCost]) -> Table:
    """One line per size."""
    columns = (
        "checkpoints",
        "MiB",
        "written ms",
        "step ms",
        "held ms",
        "cost ms",
        "% at one a minute",
        "limit 3 %",
    )
    notes = (
        "Windows of steps in turns, with a checkpoint at the first step and without; cost: the difference",
        "of neighbours, median (quartiles). Held: by how much that first step is longer than steps without",
        "one usually are, while weights are copied and compared; writing goes on beside the next ones.",
    )
    return Table("Checkpoints", columns, tuple(cost.line() for cost in costs), notes)


class _Clock(Boundaries):
    """Takes down when the steps of rank 0 begin, and has every second window begin with a checkpoint."""

    def __init__(self, windows: Windows) -> None:
        super().__init__(windows.scan, name=windows.scan.stem)
        self.kept: list[CheckpointKept] = []
        self._windows = windows
        self._asked: list[float] = []

    def hear(self, record: Record, line: int | None) -> None:
        """What rank 0 tells: a checkpoint may be whole."""
        super().hear(record, line)
        if isinstance(record, CheckpointKept):
            self.kept.append(record)

    def _at_boundary(self, now: float) -> None:
        self._asked.append(now)
        step = len(self._asked) - 1 - self._warm_up
        if step >= 0 and step % (2 * self._windows.steps) == self._windows.steps:
            self._wishes = [Wish(0, TakeCheckpoint())]
        if step >= 2 * self._windows.steps * self._windows.windows:
            self._wishes, self._trains = [Wish(0, Stop())], False

    @property
    def _warm_up(self) -> int:
        """Steps after which the buffers are full: then every checkpoint has the same size."""
        return self._windows.capacity // 16 // 2 + 5

    def measured(self) -> tuple[list[float], list[float]]:
        """Seconds of the windows with a checkpoint, and of those before them."""
        spent = self._step_s.sum(axis=2)
        return spent[:, 1].tolist(), spent[:, 0].tolist()

    def held(self) -> list[float]:
        """Seconds by which the first step of each window with a checkpoint was longer than is usual."""
        each = self._step_s
        held: list[float] = (each[:, 1, 0] - np.median(each[:, 0])).tolist()
        return held

    @property
    def _step_s(self) -> NDArray[np.float64]:
        """(window of either kind, without or with, step): seconds of each step."""
        steps, count = self._windows.steps, self._windows.windows
        times = np.array(self._asked[self._warm_up :][: 2 * steps * count + 1])
        return np.diff(times).reshape(-1, 2, steps)  # none but on rank 0
