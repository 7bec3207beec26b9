"""Figures of one case, each beside its limit, with a verdict; what only a GPU has is left out by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.bench.gpu.attainable import Attainable
from rehearsal_kit.bench.gpu.cases import Case
from rehearsal_kit.bench.gpu.findings import FASTEST, FROM_HOST, WITH, WITHOUT, CaseFindings
from rehearsal_kit.bench.spread import MedianInterval
from rehearsal_kit.buffer.row_layout import RowLayout

WAITED = 0.2
"""Largest share of a step, in percent, that is waited for the background job."""
ATTAINABLE = 1.10
"""Largest ratio of a step to what the card can do."""
SAME_BITS = 1.15
"""Largest ratio of a step with the same bits each time to one by the fastest algorithms."""
EVALUATION_S = 2.0
"""Most seconds for the evaluation of 1000 samples."""
MEMORY = (4, 1.1)
"""Copies of the weights that a session may hold at its peak, and by what factor more than it has to."""
ONLY_CUDA = "left out: only CUDA has it"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line: what was measured, and whether it is what it should be."""

    name: str
    unit: str = ""
    """Empty for ratios and numbers."""
    value: MedianInterval | None
    """None where it was left out."""
    limit: float | None = None
    """The largest that it may be, in its unit; None: there is no limit."""

    @property
    def verdict(self) -> str:
        """Whether the whole interval lies on one side of the limit; empty without a limit or a value."""
        if self.value is None or self.limit is None:
            return ""
        if self.value.high <= self.limit:
            return "within"
        return "above" if self.value.low > self.limit else "not resolved"

    def line(self) -> tuple[str, ...]:
        """Name, value, interval, limit, verdict; or the name and why there is no value."""
        name = f"{self.name}, {self.unit}" if self.unit else self.name
        if self.value is None:
            return name, ONLY_CUDA
        known = self.value.low < self.value.high < math.inf
        interval = "-" if not known else f"{_short(self.value.low)} to {_short(self.value.high)}"
        limit = "" if self.limit is None else _short(self.limit)
        return name, _short(self.value.median), interval, limit, self.verdict

    def data(self) -> dict[str, Any]:
        """Plain values; infinite ends of an interval are None."""
        ends = None if self.value is None else [self.value.low, self.value.median, self.value.high]
        finite = None if ends is None else [x if math.isfinite(x) else None for x in ends]
        named = {"name": self.name, "unit": self.unit, "limit": self.limit, "verdict": self.verdict}
        return {**named, "low_median_high": finite}


def figures(case: Case, ranks: Sequence[CaseFindings], *, device: str) -> list[Figure]:
    """Everything that was measured of a case, of all its ranks; the slowest rank of a block counts.

    device: "cpu", or "cuda".
    """
    return [
        *_steps(case, ranks, cuda=device != "cpu"),
        *_attainable(ranks, cuda=device != "cpu"),
        *_synchronisations(ranks[0], cuda=device != "cpu"),
        *_memory(case, ranks[0], ranks=len(ranks)),
        *_stalls(case, ranks),
        *_between_ranks(ranks),
    ]


def slowest(ranks: Sequence[CaseFindings], kind: str) -> list[float]:
    """Seconds of a step, block by block, on the rank that took longest."""
    return [max(each) for each in zip(*(rank.blocks[kind] for rank in ranks), strict=True)]


def _steps(case: Case, ranks: Sequence[CaseFindings], *, cuda: bool) -> Iterator[Figure]:
    rehearsed, plain, fastest = (slowest(ranks, kind) for kind in (WITH, WITHOUT, FASTEST))
    yield Figure(name="step with rehearsal", unit="ms", value=_ms(rehearsed))
    yield Figure(name=f"step without, of as many samples ({case.rows})", unit="ms", value=_ms(plain))
    yield Figure(name="with / without", value=_ratios(rehearsed, plain), limit=case.limit)
    waited = 100 * ranks[0].waited_s / MedianInterval.of(rehearsed).median
    yield Figure(
        name="waited for the background job",
        unit="% of a step",
        value=MedianInterval.exactly(waited),
        limit=WAITED,
    )
    hosted = slowest(ranks, FROM_HOST) if cuda else None
    yield Figure(
        name="step with rehearsal, buffer in host memory",
        unit="ms",
        value=None if hosted is None else _ms(hosted),
    )
    # On a CPU there is nothing to choose between.
    price = _ratios(rehearsed, fastest) if cuda else None
    yield Figure(name="with the same bits / by the fastest algorithms", value=price, limit=SAME_BITS)


def _attainable(ranks: Sequence[CaseFindings], *, cuda: bool) -> Iterator[Figure]:
    words = {WITH: "same bits", FASTEST: "fastest"}
    for kind, found in ((WITH, ranks[0].repeatable), (FASTEST, ranks[0].fastest)):
        how = words[kind]
        yield Figure(name=f"attainable, kernel by kernel ({how})", unit="ms", value=_ms(found.eager_s))
        yield Figure(
            name=f"attainable, as CUDA graph ({how})", unit="ms", value=_ms(found.graph_s) if cuda else None
        )
        yield Figure(
            name=f"step / CUDA graph ({how})",
            value=_by_graph(slowest(ranks, kind), found) if cuda else None,
            limit=ATTAINABLE,
        )


def _by_graph(steps: Sequence[float], found: Attainable) -> MedianInterval:
    return MedianInterval.of(steps).over(MedianInterval.of(found.graph_s))


def _synchronisations(found: CaseFindings, *, cuda: bool) -> Iterator[Figure]:
    for strategy, counted in found.counted.items():
        each = sum(counted.here.values()) / counted.steps
        yield Figure(
            name=f"synchronisations in a step of {strategy}",
            value=MedianInterval.exactly(each) if cuda else None,
            limit=0,
        )


def _memory(case: Case, found: CaseFindings, *, ranks: int) -> Iterator[Figure]:
    weights, activations = found.repeatable.weight_bytes, found.repeatable.activation_bytes
    row = RowLayout.of(case.subject.samples(0)).row_bytes
    yield Figure(name="weights", unit="MiB", value=_mib(weights))
    yield Figure(name="activations of such a step", unit="MiB", value=_mib(activations))
    buffer, lies = case.capacity * row, "on the device" if found.buffer_there else "in host memory"
    yield Figure(name=f"buffer of a rank, {lies}", unit="MiB", value=_mib(buffer))
    yield Figure(name="shard of a rank, on the device", unit="MiB", value=_mib(case.shard * row))
    copies, beyond = MEMORY
    held = case.shard * row + copies * weights + found.buffer_there * buffer
    most = None if activations is None else beyond * (held + activations) / MIB
    yield Figure(
        name="peak of device memory",
        unit="MiB",
        value=_mib(None if found.memory is None else found.memory.peak),
        limit=most,
    )
    yield Figure(
        name="device memory between two steps",
        unit="MiB",
        value=_mib(None if found.memory is None else found.memory.before),
    )


def _stalls(case: Case, ranks: Sequence[CaseFindings]) -> Iterator[Figure]:
    stalls = [max(each) for each in zip(*(rank.checkpoints for rank in ranks), strict=True)]
    limit = None if case.stall_limit_s is None else case.stall_limit_s * 1e3
    size = ranks[0].checkpoint_bytes / MIB
    yield Figure(
        name=f"a checkpoint of {size:.0f} MiB holds training up", unit="ms", value=_ms(stalls), limit=limit
    )
    yield Figure(name="until it is on disk", unit="ms", value=_ms(ranks[0].written))
    for seconds in ranks[0].evaluations:
        yield Figure(
            name=f"evaluation of {case.evaluated} samples",
            unit="s",
            value=MedianInterval.exactly(seconds),
            limit=EVALUATION_S,
        )


def _between_ranks(ranks: Sequence[CaseFindings]) -> Iterator[Figure]:
    if len(ranks) == 1:
        return
    sums = [max(each) for each in zip(*(rank.sums for rank in ranks), strict=True)]
    yield Figure(name="sum of the gradients over the ranks, alone", unit="ms", value=_ms(sums))
    jobs = [second for rank in ranks if rank.exchange is not None for second in rank.exchange.job_s]
    yield Figure(name="background job with an exchange between hosts, alone", unit="ms", value=_ms(jobs))
    there = [max(each) for each in zip(*(rank.exchange_there for rank in ranks), strict=True)]
    if there:
        yield Figure(name="exchange between devices, alone", unit="ms", value=_ms(there))


def _ratios(above: Sequence[float], below: Sequence[float]) -> MedianInterval:
    """Median of the ratios of neighbouring blocks."""
    return MedianInterval.of([a / b for a, b in zip(above, below, strict=True)])


def _ms(seconds: Sequence[float]) -> MedianInterval:
    return MedianInterval.of([1e3 * each for each in seconds])


def _mib(count: int | None) -> MedianInterval | None:
    return None if count is None else MedianInterval.exactly(count / MIB)


def _short(number: float) -> str:
    """Four digits that count; whole numbers as such."""
    return f"{number:.0f}" if abs(number) >= 1000 or number == 0 else f"{number:.4g}"
