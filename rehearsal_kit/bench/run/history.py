"""What a kernel and a restarted rank 0 pay for a long run: time and memory, at several lengths."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.bench.children import in_child, in_children
from rehearsal_kit.bench.run.long_runs import LongRun
from rehearsal_kit.bench.table import Table
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.record.preview_files import Preview
from rehearsal_kit.record.records import CheckpointKept, Noted, Steps
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.tail import TimelineTail
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.record.timeline_cache import condense
from rehearsal_kit.session.run_connection import RunConnection
from rehearsal_kit.session.session import Session
from rehearsal_kit.widgets.panel import Panel

PUSHES = 40
ATTACH_S = 3.0
PUSH_MS = 20.0
GROWTH = 1.5
"""Memory at the longest over that at the shortest, at most."""


@dataclass(frozen=True)
class HistoryCost:
    """What a kernel and a restarted rank 0 pay for a run of one length."""

    run: LongRun
    kernel_mib: float
    """What a kernel takes that has attached and shows its panel, beyond one without a run."""
    attach_s: float
    state_us: float
    push_ms: float
    """Median over pushes of the panel, with news before each."""
    push_p95_ms: float
    table_s: float
    condense_s: float
    """Beside training: the cache is brought up to date, with a hundredth of the run at most to add."""
    restart_s: float
    """Seconds rank 0 takes, from its last checkpoint, to know what it has told and to tell its first line."""
    restart_mib: float

    def holds(self) -> bool:
        """Whether the promised limits are kept."""
        return self.attach_s < ATTACH_S and self.push_ms < PUSH_MS


def measure_histories(
    runs: Sequence[LongRun], *, say: Callable[[str], None], shared: bool
) -> list[HistoryCost]:
    """Write each of these runs and look at it from fresh processes, one after the other.

    say: is told of each before it begins. shared: all in one process instead, which saves seconds and spoils
    what is said of memory.
    """
    if shared:
        return in_children(_together, [(run,) for run in runs], say=say, shared=True)
    costs = []
    for run in runs:
        say(f"measuring {run.steps:,} records of steps")
        with _run_folder() as path:
            in_child(_write, path, run)
            costs.append(HistoryCost(run=run, **in_child(_kernel, path), **in_child(_restart, path)))
    return costs


def history_table(costs: list[HistoryCost]) -> Table:
    """One line per length, ratios to the shortest in brackets."""
    columns = (
        ("kernel MiB", 0, "kernel_mib"),
        ("attach s", 2, "attach_s"),
        ("state us", 0, "state_us"),
        ("push ms", 1, "push_ms"),
        ("p95", 1, "push_p95_ms"),
        ("table s", 2, "table_s"),
        ("condense s", 1, "condense_s"),
        ("restart s", 2, "restart_s"),
        ("MiB", 1, "restart_mib"),
    )
    lines = [
        (
            f"{cost.run.steps:,}",
            *(_cell(getattr(cost, name), getattr(costs[0], name), digits) for _, digits, name in columns),
            "yes" if cost.holds() else "NO",
        )
        for cost in costs
    ]
    grown = costs[-1].kernel_mib / costs[0].kernel_mib
    return Table(
        f"A kernel and rank 0 after so many records of steps, {costs[0].run.tasks:,} tasks",
        ("records of steps", *(title for title, _, _ in columns), "holds"),
        tuple(lines),
        (
            "In brackets: the ratio to the first line.",
            f"Limits: attach < {ATTACH_S:g} s, push < {PUSH_MS:g} ms; memory of the kernel at the longest at "
            f"most {GROWTH:g} times that at the shortest: {grown:.2f}"
            f"{', holds' if grown < GROWTH else ': NO'}.",
        ),
    )


def plain_cost(cost: HistoryCost) -> dict[str, Any]:
    """Plain values."""
    return {**asdict(cost), "holds": cost.holds()}


class _Reader(RunConnection):
    """What a kernel knows of a run, without a cluster."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline, self.error, self.leads, self._state = timeline, "", True, "live"
        self.refused, self.holders, self._first = "", ["kernel"], 0


class Reading(Session):
    """A session of a run that goes on, without a cluster."""

    def __init__(self, run: RunFolder, timeline: Timeline) -> None:
        self.run, self.timeline, self._ranks = run, timeline, 2
        self._on_close = []
        self.strategy, self.training, self.rehearsal = ER(), Training(), Rehearsal()
        self._run_connection = _Reader(timeline)

    def preview(self, task: int | None = None, *, trained: bool = False) -> Preview | None:
        """The same picture every time."""
        image = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        fields = dict.fromkeys(("amplitude", "phase"), image)
        return Preview(
            task=0, step=0, name="diffraction", input=image, truth=fields, predicted=fields, words=""
        )


def _write(path: Path, run: LongRun) -> None:
    run.write(RunFolder(path).timeline)


def _together(run: LongRun) -> HistoryCost:
    with _run_folder() as path:
        _write(path, run)
        return HistoryCost(run=run, **_kernel(path), **_restart(path))


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rehearsal-bench-") as folder:
        yield RunFolder(Path(folder) / "run").create().path


def _kernel(path: Path) -> dict[str, float]:
    run = RunFolder(path)
    warm = Panel(Reading(run, Timeline(LongRun(10, 2).records())), pump=False)
    warm.push()
    warm.close()
    before = _resident_mib()
    began = time.perf_counter()
    history = TimelineTail(run)
    history.catch_up()
    attach = time.perf_counter() - began
    session = Reading(run, history.timeline)
    state = _seconds(lambda: session.state, 1000)
    panel = Panel(session, pump=False)
    pushes = [_push(panel, number) for number in range(PUSHES)]
    grown = _resident_mib() - before
    table = _seconds(session.table, 1)
    panel.close()
    return {
        "kernel_mib": grown,
        "attach_s": attach,
        "state_us": 1e6 * state,
        "push_ms": 1e3 * float(np.median(pushes[5:])),
        "push_p95_ms": 1e3 * float(np.percentile(pushes[5:], 95)),
        "table_s": table,
    }


def _push(panel: Panel, number: int) -> float:
    timeline = panel.session.timeline
    newest = timeline.last(Steps)
    if newest is not None:
        timeline.append(replace(newest, first=newest.first + newest.count))
    began = time.perf_counter()
    panel.push()
    return time.perf_counter() - began


def _restart(path: Path) -> dict[str, float]:
    run = RunFolder(path)
    kept = TimelineTail(run)
    kept.catch_up()
    newest = kept.timeline.last(CheckpointKept)
    since = 0 if newest is None else newest.checkpoint
    del kept, newest
    before = _resident_mib()
    began = time.perf_counter()
    reporter = Reporter(run, 0, lambda record, line: None)
    reporter.goes_on_from(since)
    reporter.tell(Noted(step=0, text="restarted", time=0.0))
    seconds = time.perf_counter() - began
    grown = _resident_mib() - before
    reporter.close()
    return {
        "condense_s": _seconds(lambda: condense(run.timeline), 1),
        "restart_s": seconds,
        "restart_mib": max(0.0, grown),
    }


def _seconds(call: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def _resident_mib() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / MIB


def _cell(value: float, first: float, digits: int) -> str:
    return f"{value:.{digits}f}" + (f" ({value / first:.2f})" if first > 0 else "")
