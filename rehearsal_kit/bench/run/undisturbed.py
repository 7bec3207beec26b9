"""Whether training goes on as fast while something else happens: steps per second, block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rehearsal_kit.base.byte_units import GIB, MIB
from rehearsal_kit.bench.children import on_ranks
from rehearsal_kit.bench.run.undisturbed_ranks import (
    ARRIVAL,
    CHECKPOINT,
    NOTHING,
    PREVIEWS,
    PROGRAM,
    Block,
    Measurement,
    Turns,
    lay_out,
    measure_undisturbed,
)
from rehearsal_kit.bench.spread import Interval
from rehearsal_kit.bench.table import Table

LIMIT = 0.98
"""Lower limit of the steps per second, as a share of those without disturbance."""
DISTURBANCES = (ARRIVAL, PROGRAM, PREVIEWS, CHECKPOINT)
FULL = Turns(folder=Path(), side=64, stored=5000, arriving_bytes=4 * GIB, steps=25, rounds=5)
QUICK = Turns(folder=Path(), side=16, stored=32, arriving_bytes=8 * MIB, steps=3, rounds=2)


@dataclass(frozen=True)
class Undisturbed:
    """How fast all ranks together train beside each disturbance: they step at the same time."""

    turns: Turns
    ranks: int
    found: Measurement

    def ratios(self, disturbance: str) -> list[float]:
        """Steps per second of each block with it, by those of the blocks without right before and after."""
        blocks = self.found.blocks
        return [
            2 * here.rate / (before.rate + after.rate)
            for before, here, after in zip(blocks, blocks[1:], blocks[2:], strict=False)
            if here.disturbance == disturbance
        ]

    def lost(self, disturbance: str) -> float:
        """Seconds of training that one of them costs, however long it takes."""
        blocks = [block for block in self.found.blocks if block.disturbance == disturbance]
        ratios = self.ratios(disturbance)
        return sum((1 - r) * block.seconds for r, block in zip(ratios, blocks, strict=True)) / len(blocks)

    def verdict(self, disturbance: str) -> str:
        """Whether the whole interval lies on one side of the limit."""
        found = Interval.of(self.ratios(disturbance))
        if found.low >= LIMIT:
            return f"at least {LIMIT}"
        return f"below {LIMIT}" if found.high < LIMIT else "not resolved"

    def line(self, disturbance: str) -> tuple[str, ...]:
        """This disturbance's line of the table."""
        found = Interval.of(self.ratios(disturbance))
        blocks = [block for block in self.found.blocks if block.disturbance == disturbance]
        return (
            self._words(disturbance),
            f"{sum(block.seconds for block in blocks) / len(blocks):.1f}",
            f"{_rate(blocks):.1f}",
            f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})",
            f"{self.lost(disturbance):.1f}",
            self.verdict(disturbance),
        )

    def data(self) -> dict[str, Any]:
        """Plain values."""
        found = {name: Interval.of(self.ratios(name)) for name in DISTURBANCES}
        return {
            "ranks": self.ranks,
            "arriving_bytes": self.turns.arriving_bytes,
            "checkpoint_bytes": self.found.shard_bytes,
            "limit": LIMIT,
            "ratios": {
                name: {
                    "low": interval.low,
                    "mean": interval.mean,
                    "high": interval.high,
                    "lost_s": self.lost(name),
                    "verdict": self.verdict(name),
                    "blocks": self.ratios(name),
                }
                for name, interval in found.items()
            },
            "blocks": [
                {"disturbance": block.disturbance, "steps": block.steps, "seconds": block.seconds}
                for block in self.found.blocks
            ],
        }

    def table(self) -> Table:
        """A line for each disturbance."""
        still = [block for block in self.found.blocks if block.disturbance == NOTHING]
        columns = ("while", "s", "steps/s", "by those without (95 %)", "lost, s", f"limit {LIMIT}")
        notes = (
            f"Blocks of {self.turns.steps} steps or more, in turns with blocks without disturbance, of",
            f"{_rate(still):.1f} steps/s; a ratio is to those before and after. Interval: Student's t over",
            f"{self.turns.rounds} rounds. s: how long a block is; with arrivals and checkpoints it lasts",
            "until they are over, with previews until one came. lost: training time that one block costs.",
            "What arrives has no blocks on disk: it is hashed, but not fetched. Another program, which has",
            "nothing to do with the run, hashes as much: what that takes from training, this machine cannot",
            "spare.",
        )
        lines = tuple(self.line(name) for name in DISTURBANCES)
        return Table(f"Training beside something else; ranks: {self.ranks}", columns, lines, notes)

    def _words(self, disturbance: str) -> str:
        if disturbance == ARRIVAL:
            return f"a file of {self.turns.arriving_bytes / MIB:.0f} MiB arrives"
        if disturbance == PROGRAM:
            return "another program hashes such a file"
        if disturbance == CHECKPOINT:
            return f"a checkpoint of {self.found.shard_bytes / MIB:.0f} MiB is written"
        return "previews are asked for every second"


def measure(turns: Turns, ranks: int) -> Undisturbed:
    """Measure on real ranks, in a folder that is removed again."""
    with tempfile.TemporaryDirectory(prefix="rehearsal-bench-") as folder:
        here = replace(turns, folder=Path(folder))
        lay_out(here, ranks)
        found = on_ranks(["cpu"] * ranks, measure_undisturbed, here)[0]
    return Undisturbed(turns, ranks, found)


def _rate(blocks: Sequence[Block]) -> float:
    return sum(block.steps for block in blocks) / sum(block.seconds for block in blocks)
