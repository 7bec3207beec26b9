"""What strategies made of the same streams: numbers per strategy and seed, as a table and as data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from typing import Any

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.record.records import Applied, Steps, TaskSetAside
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.measures import (
    GapClosed,
    Matrix,
    average_error,
    backward_transfer,
    beside,
    final_error,
    forgetting,
    forward_transfer,
    gap_closed,
)

STEERING = frozenset({"Steer", "FinishTask", "Skip", "Reorder", "RollBack"})
"""Commands after which a run is not what it would have been."""
REFERENCES = ("Incremental", "FromScratch")
RECONSTRUCTION = "mean absolute error of amplitude (median 1) + of phase (rad), held-out regions"
INCOMPLETE = 3
"""Exit status of commands that have done their work but for tasks that were set aside."""
FORMULAS = (
    "final: mean error over all tasks after the last one; on average: the same after every task, averaged",
    "forgetting: final error - best earlier error, mean over tasks 1..T-1",
    "backward transfer: error right after a task was trained - its final error, mean over tasks 1..T-1 "
    "(below 0: forgotten)",
    "forward transfer: error of the untrained network on a task - error just before it was trained, mean "
    "over tasks 2..T (above 0: earlier tasks help)",
    "gap closed: (Incremental - strategy) / (Incremental - FromScratch), of mean final errors",
    "training: seconds in training steps alone; x Incremental: ratio to it on the same seed; wait: share of "
    "them spent waiting for representatives",
    "stability gap: largest error of earlier tasks in the first 50 steps of a task relative to that before "
    "it, the worst task of a run (`stability_every`; 1: nothing became worse)",
    "x rows: samples that went through the network in training, new and old, relative to Incremental's",
)
SPELT = {
    "matrix": "test_error",
    "before": "error_before",
    "untrained": "error_untrained",
    "seconds": "training_seconds",
    "waited": "waited_seconds",
    "rows": "rows_computed",
    "remote": "remote_share",
}
"""Names of fields of an outcome for readers of the data, who do not read the docstrings."""
HEAD = (
    "strategy",
    "final error",
    "on average",
    "forgetting",
    "backward",
    "forward",
    "gap closed",
    "stability gap",
    "x rows",
    "training",
    "x Incremental",
    "steps",
    "wait",
    "memory",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One strategy on one stream."""

    strategy: str
    """Its name as the table has it, with the size of the buffer where several are compared."""
    tasks: Sequence[str]
    set_aside: Sequence[Sequence[str]]
    """Name and reason."""
    simulated: bool
    """Whether any of the counts were simulated."""
    matrix: Matrix
    """Test error: row i, column j, on task j after task i."""
    before: Sequence[float | None] = ()
    """Test error on each task just before it was trained."""
    untrained: Sequence[float | None] = ()
    """Test error of the untrained network on each task."""
    metrics: Sequence[Mapping[str, float]] = ()
    """Metrics of each task at the end, on test samples."""
    seconds: float
    """Seconds spent in training steps."""
    steps: int
    rows: int = 0
    """Samples that went through the network of rank 0 in training; 0: not told."""
    waited: float
    """Seconds of these that rank 0 waited for representatives."""
    remote: float | None
    """Share of the representatives of rank 0 that another rank had stored; None without rehearsal."""
    steered: bool = False
    """Whether somebody steered the run, which nobody did the others."""
    stability: Sequence[float] = ()
    """How many times worse earlier tasks became for a while, of each arrival that was looked after."""
    memory_bytes: int = 0
    """Peak of all processes together while it ran; 0: not looked at."""

    @property
    def final(self) -> float:
        """Mean test error over all tasks at the end."""
        return final_error(self.matrix)

    @staticmethod
    def of(strategy: str, timeline: Timeline, *, memory_bytes: int = 0) -> Outcome:
        """What a timeline tells; of a run that was rolled back, what led to its newest branch."""
        steered = any(r.kind in STEERING and not r.refused for r in timeline.records(Applied))
        timeline = timeline.lineage()
        arrived, steps = [*timeline.tasks().values()], timeline.records(Steps)
        drawn = sum(record.representatives for record in steps)
        before, untrained = timeline.untaught()
        return Outcome(
            strategy=strategy,
            tasks=[record.name for record in arrived],
            set_aside=[[record.name, record.reason] for record in timeline.records(TaskSetAside)],
            simulated=any(record.simulated for record in arrived),
            matrix=timeline.error_matrix("test"),
            before=before,
            untrained=untrained,
            metrics=timeline.metrics("test"),
            seconds=timeline.training_seconds(),
            steps=sum(record.count for record in steps),
            rows=sum(record.rows for record in steps),
            waited=sum(record.waited for record in steps),
            remote=sum(record.remote for record in steps) / drawn if drawn else None,
            steered=steered,
            stability=[*timeline.stability_gaps().values()],
            memory_bytes=memory_bytes,
        )

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Outcome:
        """The outcome that `asdict` made plain values of; TypeError if it was another version's."""
        return Outcome(**{name: plain[name] for name in plain if name in {f.name for f in fields(Outcome)}})


@dataclass
class Comparison:
    """Outcomes of several strategies, for one seed or several."""

    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    """Outcomes by seed, those of one seed in the order in which the strategies ran."""
    measure: str = RECONSTRUCTION
    """What is called the error."""

    def add(self, seed: int, outcome: Outcome) -> None:
        """One more outcome."""
        self.outcomes.setdefault(seed, []).append(outcome)

    @property
    def strategies(self) -> list[str]:
        """Names, in the order in which they ran."""
        names = (outcome.strategy for outcomes in self.outcomes.values() for outcome in outcomes)
        return list(dict.fromkeys(names))

    @property
    def set_aside(self) -> list[tuple[str, str]]:
        """Names of the tasks that some run did not train, and why; each once."""
        every = (outcome for outcomes in self.outcomes.values() for outcome in outcomes)
        return list(dict.fromkeys((name, reason) for each in every for name, reason in each.set_aside))

    @property
    def memory_bytes(self) -> int:
        """The highest peak of all runs."""
        return max((o.memory_bytes for outcomes in self.outcomes.values() for o in outcomes), default=0)

    def by_seed(self, strategy: str) -> dict[int, Outcome]:
        """The outcomes of one strategy, in order of seed."""
        return {
            seed: outcome
            for seed, outcomes in sorted(self.outcomes.items())
            for outcome in outcomes
            if outcome.strategy == strategy
        }

    def finals(self, strategy: str) -> list[float]:
        """Final mean errors of one strategy, in order of seed."""
        return [outcome.final for outcome in self.by_seed(strategy).values()]

    def ratios(self, strategy: str) -> list[float]:
        """Training time relative to Incremental's, seed by seed; empty where that is not there."""
        return [*self._ratios(strategy).values()]

    def rows_computed(self, strategy: str) -> float | None:
        """Samples computed in training relative to Incremental's, over all seeds; None where not told."""
        base, those = self.by_seed("Incremental"), self.by_seed(strategy)
        if not all(outcome.rows and seed in base and base[seed].rows for seed, outcome in those.items()):
            return None
        return sum(outcome.rows for outcome in those.values()) / sum(base[seed].rows for seed in those)

    def front(self) -> dict[str, tuple[float, float, float]]:
        """Rows computed, part of the gap that was closed and its spread, by strategy, where all are known."""
        front = {}
        for name in self.strategies:
            rows, gap = self.rows_computed(name), self._gap(name)
            if rows is not None and gap.closed is not None:
                front[name] = (rows, gap.closed, gap.spread or 0.0)
        return front

    def points(self) -> dict[str, tuple[list[float], list[float]]]:
        """Training times relative to Incremental's, and final errors, by strategy, where both are known."""
        points = {}
        for name in self.strategies:
            errors = {seed: outcome.final for seed, outcome in self.by_seed(name).items()}
            known = {s: r for s, r in self._ratios(name).items() if math.isfinite(errors[s])}
            if known:
                points[name] = ([*known.values()], [errors[seed] for seed in known])
        return points

    def text(self) -> str:
        """The table for a terminal."""
        head, rows = self.rows()
        lines = [self._matrices(), _aligned([head, *rows]), "", *self.notes()]
        if self.memory_bytes:
            lines.append(f"peak memory of all processes together: {self.memory_bytes / MIB:.0f} MiB")
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table for a README."""
        head, rows = self.rows()
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join(f"| {' | '.join(cell.replace('+-', '±') for cell in line)} |" for line in lines)

    def html(self) -> str:
        """The table for a report, escaped."""
        head, rows = self.rows()
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        notes = "".join(f"<p class='soft'>{escape(line)}</p>" for line in self.notes())
        return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and one line per strategy: means over the seeds, and their spread if there are several."""
        return [*HEAD], [self._row(strategy) for strategy in self.strategies]

    def notes(self) -> list[str]:
        """What stands under the table: differences that matter or do not, and the formulas."""
        lines = []
        for strategy in self.strategies:
            several = len(self.outcomes) > 1 and strategy not in REFERENCES
            if several and self._comparable(strategy, "FromScratch"):
                verdict = beside(self.finals(strategy), self.finals("FromScratch"))
                lines.append(f"final error of {strategy} beside FromScratch: {verdict}")
        lines += [f"error: {self.measure}", *FORMULAS]
        if any(o.simulated for outcomes in self.outcomes.values() for o in outcomes):
            lines.append("counts are SIMULATED (Poisson noise on far-field patterns)")
        return lines

    def data(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; undefined numbers are null."""
        return {
            "error": self.measure,
            "seeds": {
                str(seed): {outcome.strategy: _plain(outcome) for outcome in outcomes}
                for seed, outcomes in self.outcomes.items()
            },
            "summary": {
                strategy: {
                    "final_errors": [_finite(e) for e in self.finals(strategy)],
                    "gap_closed": self._gap(strategy).closed,
                    "gap_spread": self._gap(strategy).spread,
                    "verdict": self._gap(strategy).verdict,
                    "rows_ratio": self.rows_computed(strategy),
                    "runtime_ratios": self.ratios(strategy),
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
        if not self._comparable(strategy, *REFERENCES):
            return GapClosed(None, "not all runs are there")
        return gap_closed(
            self.finals(strategy),
            incremental=self.finals("Incremental"),
            from_scratch=self.finals("FromScratch"),
        )

    def _ratios(self, strategy: str) -> dict[int, float]:
        base = self.by_seed("Incremental")
        return {
            seed: outcome.seconds / base[seed].seconds
            for seed, outcome in self.by_seed(strategy).items()
            if seed in base and base[seed].seconds
        }

    def _comparable(self, *strategies: str) -> bool:
        """Whether all of them have a final error for the same seeds."""
        each = [self.by_seed(strategy) for strategy in strategies]
        same = all(one.keys() == each[0].keys() for one in each)
        return same and all(math.isfinite(o.final) for one in each for o in one.values())

    def _row(self, strategy: str) -> list[str]:
        outcomes = [*self.by_seed(strategy).values()]
        seconds = statistics.fmean(o.seconds for o in outcomes)
        ratios, rows = self.ratios(strategy), self.rows_computed(strategy)
        measures = (
            [o.final for o in outcomes],
            [average_error(o.matrix) for o in outcomes],
            [forgetting(o.matrix) for o in outcomes],
            [backward_transfer(o.matrix) for o in outcomes],
            [forward_transfer(o.before, o.untrained) for o in outcomes],
        )
        memory = max(o.memory_bytes for o in outcomes)
        return [
            strategy + (" (steered)" if any(o.steered for o in outcomes) else ""),
            *(_spread(values) for values in measures),
            self._gap(strategy).verdict,
            _spread([max(o.stability) for o in outcomes if o.stability], digits=2),
            "-" if rows is None else f"{rows:.3f}",
            f"{seconds:.1f} s",
            _spread(ratios, digits=2),
            f"{outcomes[0].steps}",
            f"{100 * sum(o.waited for o in outcomes) / max(1e-9, seconds * len(outcomes)):.2f} %",
            f"{memory / MIB:.0f} MiB" if memory else "-",
        ]

    def _matrices(self) -> str:
        if not self.outcomes:
            return "nothing was compared yet"
        seed, outcomes = next(iter(self.outcomes.items()))
        lines = [f"test error on every task (column) after every task (row), seed {seed}"]
        for outcome in outcomes:
            numbers = [str(number) for number in range(len(outcome.tasks))]
            head = [outcome.strategy, *numbers, "mean"]
            body = [
                [f"  after {i} {outcome.tasks[i]}", *(_cell(e) for e in row), _cell(_mean(row))]
                for i, row in enumerate(outcome.matrix)
                if any(e is not None for e in row)
            ]
            lines += [_aligned([head, *body]), ""]
        return "\n".join([*lines, *(f"set aside {name}: {reason}" for name, reason in self.set_aside)])


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        **{SPELT.get(name, name): value for name, value in asdict(outcome).items()},
        "final_error": _finite(outcome.final),
        "average_error": average_error(outcome.matrix),
        "forgetting": forgetting(outcome.matrix),
        "backward_transfer": backward_transfer(outcome.matrix),
        "forward_transfer": forward_transfer(outcome.before, outcome.untrained),
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


def _spread(values: Sequence[float | None], *, digits: int = 4) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return f"{mean} +- {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
