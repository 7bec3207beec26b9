"""What strategies made of the same streams: numbers per strategy and seed, as a table and as data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from rehearsal_kit.quality import GapClosed, Matrix, final_error, forgetting, gap_closed
from rehearsal_kit.telemetry import Steps, TaskArrived, TaskSetAside
from rehearsal_kit.timeline import Timeline

REFERENCES = ("Incremental", "FromScratch")
FORMULAS = (
    "error: mean absolute error of amplitude (median 1) + of phase (rad), held-out regions",
    "forgetting: final error - best earlier error, mean over tasks 1..T-1",
    "gap closed: (Incremental - strategy) / (Incremental - FromScratch), of mean final errors",
    "training: seconds in training steps alone; wait: share of them spent waiting for representatives",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One strategy on one stream."""

    strategy: str
    tasks: Sequence[str]
    set_aside: Sequence[tuple[str, str]]
    """Name and reason."""
    simulated: bool
    """Whether any of the counts were simulated."""
    matrix: Matrix
    """Test error: row i, column j, on task j after task i."""
    seconds: float
    """In training steps."""
    steps: int
    waited: float
    """Seconds of these that rank 0 waited for representatives."""
    remote: float | None
    """Share of the representatives of rank 0 that another rank had stored; None without rehearsal."""

    @property
    def final(self) -> float:
        """Mean test error over all tasks at the end."""
        return final_error(self.matrix)

    @staticmethod
    def of(strategy: str, timeline: Timeline) -> Outcome:
        """What a timeline tells."""
        arrived, steps = timeline.records(TaskArrived), timeline.records(Steps)
        drawn = sum(record.representatives for record in steps)
        return Outcome(
            strategy=strategy,
            tasks=[record.name for record in arrived],
            set_aside=[(record.name, record.reason) for record in timeline.records(TaskSetAside)],
            simulated=any(record.simulated for record in arrived),
            matrix=timeline.error_matrix("test"),
            seconds=timeline.training_seconds(),
            steps=sum(len(record.losses) for record in steps),
            waited=sum(record.waited for record in steps),
            remote=sum(record.remote for record in steps) / drawn if drawn else None,
        )


@dataclass
class Comparison:
    """Outcomes of several strategies, for one seed or several."""

    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    """By seed, strategies in the order in which they ran."""
    memory_bytes: int = 0
    """Peak over all processes."""

    def add(self, seed: int, outcome: Outcome) -> None:
        """One more outcome."""
        self.outcomes.setdefault(seed, []).append(outcome)

    @property
    def strategies(self) -> list[str]:
        """Names, in the order in which they ran."""
        return [outcome.strategy for outcome in next(iter(self.outcomes.values()))]

    def of(self, strategy: str) -> list[Outcome]:
        """The outcomes of one strategy, in order of seed."""
        return [o for outcomes in self.outcomes.values() for o in outcomes if o.strategy == strategy]

    def finals(self, strategy: str) -> list[float]:
        """Final mean errors of one strategy, in order of seed."""
        return [outcome.final for outcome in self.of(strategy)]

    def text(self) -> str:
        """The table for a terminal."""
        head, rows = self.rows()
        lines = [self._matrices(), _aligned([head, *rows]), "", *FORMULAS]
        if any(o.simulated for outcomes in self.outcomes.values() for o in outcomes):
            lines.append("counts are SIMULATED (Poisson noise on far-field patterns)")
        if self.memory_bytes:
            lines.append(f"peak memory of all processes together: {self.memory_bytes / 2**20:.0f} MiB")
        return "\n".join(lines)

    def html(self) -> str:
        """The table for a report, escaped."""
        head, rows = self.rows()
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        notes = "".join(f"<p class='soft'>{escape(line)}</p>" for line in FORMULAS)
        return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and one line per strategy: means over the seeds, and their spread if there are several."""
        head = ["strategy", "error", "forgetting", "gap closed", "training", "x Incremental", "steps", "wait"]
        base = statistics.fmean(o.seconds for o in self.of("Incremental"))
        return head, [self._row(strategy, base) for strategy in self.strategies]

    def data(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; undefined numbers are null."""
        return {
            "seeds": {
                str(seed): {outcome.strategy: _plain(outcome) for outcome in outcomes}
                for seed, outcomes in self.outcomes.items()
            },
            "summary": {
                strategy: {
                    "final_errors": [_finite(e) for e in self.finals(strategy)],
                    "gap_closed": self._gap(strategy).closed,
                    "verdict": self._gap(strategy).verdict,
                }
                for strategy in self.strategies
            },
            "memory_bytes": self.memory_bytes,
            "formulas": list(FORMULAS),
        }

    def _gap(self, strategy: str) -> GapClosed:
        """How much of the gap between the references a strategy closed."""
        if strategy in REFERENCES:
            return GapClosed(None, "reference")
        return gap_closed(
            self.finals(strategy),
            incremental=self.finals("Incremental"),
            from_scratch=self.finals("FromScratch"),
        )

    def _row(self, strategy: str, base: float) -> list[str]:
        outcomes = self.of(strategy)
        seconds = statistics.fmean(o.seconds for o in outcomes)
        forgotten = [f for o in outcomes if (f := forgetting(o.matrix)) is not None]
        return [
            strategy,
            _spread(self.finals(strategy)),
            _spread(forgotten) if forgotten else "-",
            self._gap(strategy).verdict,
            f"{seconds:.1f} s",
            f"{seconds / base:.2f}" if base else "-",
            f"{outcomes[0].steps}",
            f"{100 * sum(o.waited for o in outcomes) / max(1e-9, seconds * len(outcomes)):.2f} %",
        ]

    def _matrices(self) -> str:
        seed, outcomes = next(iter(self.outcomes.items()))
        lines = [f"test error on every task (column) after every task (row), seed {seed}"]
        for outcome in outcomes:
            head = [outcome.strategy, *outcome.tasks, "mean"]
            body = [
                [f"  after {outcome.tasks[i]}", *(_cell(e) for e in row), _cell(_mean(row))]
                for i, row in enumerate(outcome.matrix)
                if any(e is not None for e in row)
            ]
            lines += [_aligned([head, *body]), ""]
        for name, reason in outcomes[0].set_aside:
            lines.append(f"set aside {name}: {reason}")
        return "\n".join(lines)


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "tasks": list(outcome.tasks),
        "set_aside": [list(pair) for pair in outcome.set_aside],
        "simulated": outcome.simulated,
        "test_error": [list(row) for row in outcome.matrix],
        "final_error": _finite(outcome.final),
        "forgetting": forgetting(outcome.matrix),
        "training_seconds": outcome.seconds,
        "steps": outcome.steps,
        "waited_seconds": outcome.waited,
        "remote_share": outcome.remote,
    }


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    )


def _mean(row: Sequence[float | None]) -> float | None:
    known = [error for error in row if error is not None]
    return statistics.fmean(known) if known else None


def _cell(error: float | None) -> str:
    return "" if error is None else f"{error:.4f}"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} +- {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
