"""`rehearsal-kit bench gpu`: the figures of the GPUs of this machine, each beside its limit."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rehearsal_kit.base.errors import RehearsalKitError, SettingsError
from rehearsal_kit.base.limits import require_integer
from rehearsal_kit.bench.children import on_ranks
from rehearsal_kit.bench.gpu.case_measurement import lay_out
from rehearsal_kit.bench.gpu.cases import CASES, FULL, QUICK, QUICK_CASES, Case
from rehearsal_kit.bench.gpu.figures import ONLY_CUDA, figures
from rehearsal_kit.bench.gpu.findings import CaseFindings, RankFindings
from rehearsal_kit.bench.gpu.rank_measurement import Plan, measure_gpu
from rehearsal_kit.bench.machine import Machine
from rehearsal_kit.bench.spread import MedianInterval
from rehearsal_kit.bench.table import Measured, Table
from rehearsal_kit.cluster.gpus import Gpus, find_gpus

COLUMNS = ("figure", "median", "95 %", "limit", "verdict")
NOTES = (
    "Blocks of steps in turns; the interval is that of the median, by order statistics. The input path is a",
    "session's: shard, mini-batch, representatives, step, offer, records. attainable: the same network and",
    "rows, resident on the device, channels_last, a fused Adam, on one rank.",
)
TRY_ON_CPU = "`rehearsal-kit bench gpu --device cpu --quick` runs the same code at tiny sizes on a CPU"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for."""

    ranks: int
    device: str
    """Either "cuda" or "cpu"."""
    quick: bool


def measure(options: Options, machine: Machine, *, say: Callable[[str], None]) -> Measured:
    """Measure in fresh processes. say: is told what begins.

    SettingsError where this machine has too few GPUs, or a CPU is to take hours.
    """
    devices = devices_of(options)
    cases, effort = (QUICK_CASES, QUICK) if options.quick else (CASES, FULL)
    # A process for each case, so that the memory of one is not that of another; a quick look does without.
    parts = [cases] if options.quick else [(case,) for case in cases]
    found: list[list[RankFindings]] = []
    for number, part in enumerate(parts, 1):
        names = " and ".join(case.subject.name for case in part)
        say(f"measuring {names} ({number} of {len(parts)}, each about a minute on an H100)")
        with tempfile.TemporaryDirectory(prefix="rehearsal-bench-") as folder:
            folders = tuple(Path(folder) / f"case {place}" for place in range(len(part)))
            for case, where in zip(part, folders, strict=True):
                lay_out(case, where, ranks=options.ranks)
            last = number == len(parts)
            plan = Plan(cases=part, effort=effort, folders=folders, devices=devices, copies=last)
            found.append(on_ranks(devices, measure_gpu, plan))
    return measured(cases, found, options=options, machine=machine)


def devices_of(options: Options, find: Callable[[], Gpus] = find_gpus) -> tuple[str, ...]:
    """The device of each rank, as torch calls it. find: tells which GPUs there are."""
    require_integer("ranks", options.ranks, low=1)
    if options.device == "cpu":
        if not options.quick:
            raise SettingsError(
                f"--device cpu came without --quick; on a CPU these steps would take hours. {TRY_ON_CPU}."
            )
        return ("cpu",) * options.ranks
    gpus = find()
    if gpus.lack:
        cure = f"; {gpus.cure}" if gpus.cure else ""
        raise SettingsError(f"bench gpu needs an NVIDIA GPU, but {gpus.lack}{cure}. {TRY_ON_CPU}.")
    if options.ranks > len(gpus.usable):
        raise SettingsError(
            f"--ranks is {options.ranks}, but {len(gpus.usable)} GPUs here can be used, and every rank "
            f"needs one of its own. Give --ranks {len(gpus.usable)} or less."
        )
    return tuple(f"cuda:{rank}" for rank in range(options.ranks))


def measured(
    cases: Sequence[Case], found: Sequence[Sequence[RankFindings]], *, options: Options, machine: Machine
) -> Measured:
    """Tables and data of what the ranks have found: for each part of the cases, one after the other."""
    of_cases = [each for part in found for each in zip(*(rank.cases for rank in part), strict=True)]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    versions, copies = found[-1][0].versions, found[-1][0].copies
    tables, data = [_heading(versions, options, date=date, torch=machine.torch)], []
    for case, ranks in zip(cases, of_cases, strict=True):
        _require_equal_rows(case, ranks[0])
        lines = figures(case, ranks, device=options.device)
        what = f"b + r = {case.batch} + {case.representatives}, c = {case.candidates}"
        title = f"{case.subject.name}; {what}; ranks: {options.ranks}"
        tables += [Table(title, COLUMNS, tuple(figure.line() for figure in lines)), *_lines(ranks[0])]
        data.append(
            {
                "case": case.subject.name,
                "figures": [figure.data() for figure in lines],
                "by_rank": [asdict(rank) for rank in ranks],
            }
        )
    whole = {"date": date, "versions": dict(versions), "ranks": options.ranks, "cases": data}
    return Measured((*tables, _copies(copies)), {"gpu": {**whole, "copies": dict(copies)}}, machine)


def _require_equal_rows(case: Case, found: CaseFindings) -> None:
    if found.rows != case.rows:
        raise RehearsalKitError(
            f"steps with rehearsal had {found.rows:g} samples instead of {case.rows}: the two kinds of steps "
            "cannot be compared. This is an error of the benchmark."
        )


def _heading(versions: Mapping[str, str], options: Options, *, date: str, torch: str) -> Table:
    told = {"date": date, **versions, "torch": torch, "ranks": f"{options.ranks}"}
    return Table("Figures of this machine", ("what", "is"), tuple(told.items()), NOTES)


def _lines(found: CaseFindings) -> list[Table]:
    """Where training waits for the device, if it does."""
    lines: list[tuple[str, ...]] = []
    for strategy, counted in found.counted.items():
        for where, lines_of in (("training", counted.here), ("another thread", counted.elsewhere)):
            by_count = sorted(lines_of.items(), key=lambda each: -each[1])
            lines += [(line, strategy, where, f"{n / counted.steps:g}") for line, n in by_count]
    if not lines:
        return []
    columns = ("synchronisations by line", "strategy", "thread", "per step")
    return [Table("Where the host waits for the device", columns, tuple(lines))]


def _copies(rates: Mapping[str, Sequence[float]]) -> Table:
    lines: list[tuple[str, ...]] = []
    for name, each in rates.items():
        found = MedianInterval.of([rate / 1e9 for rate in each])
        lines.append((name, f"{found.median:.1f}", f"{found.low:.1f} to {found.high:.1f}"))
    if not any("pinned" in name for name in rates):
        lines.append(("pinned memory", ONLY_CUDA))
    return Table("Copies between host and device", ("copy", "GB/s", "95 %"), tuple(lines))
