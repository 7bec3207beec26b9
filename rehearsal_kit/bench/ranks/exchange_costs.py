"""What the ranks do for one step in the background: agree, gather rows, exchange them; and all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rehearsal_kit.bench.ranks.exchange_ranks import RankTimes, Rows
from rehearsal_kit.bench.spread import Spread
from rehearsal_kit.bench.table import Table


@dataclass(frozen=True)
class ExchangeCost:
    """What the background work of a step costs, of all ranks together."""

    ranks: int
    rows: Rows
    times: list[RankTimes]

    def pooled(self, name: str) -> list[float]:
        """One number per rank and step: seconds, or bytes."""
        return [value for times in self.times for value in getattr(times, name)]

    @property
    def rates(self) -> list[float]:
        """10^6 bytes per second that a rank receives from others while the all-to-all runs."""
        received = zip(self.pooled("from_others"), self.pooled("all_to_all_s"), strict=True)
        return [count / seconds / 1e6 for count, seconds in received]

    def line(self) -> tuple[str, ...]:
        """This cost's line of the table."""
        header = Spread.of([s * 1e6 for s in self.pooled("header_s")]).text(0)
        parts = [Spread.of([s * 1e3 for s in self.pooled(n)]).text(2) for n in ("gather_s", "all_to_all_s")]
        job = Spread.of([s * 1e3 for s in self.pooled("job_s")]).text(2)
        rate = Spread.of(self.rates).text(0) if self.ranks > 1 else "-"
        return f"{self.ranks}", self.rows.name, f"{self.rows.row_bytes:,}", header, *parts, job, rate

    def data(self) -> dict[str, Any]:
        """Plain values."""
        names = [field.name for field in fields(RankTimes)]
        return {
            "ranks": self.ranks,
            "rows": self.rows.name,
            "row_bytes": self.rows.row_bytes,
            "representatives": self.rows.representatives,
            "median": {name: Spread.of(self.pooled(name)).median for name in names},
            "median_mb_per_s_from_others": Spread.of(self.rates).median,
            "by_rank": [{name: getattr(times, name) for name in names} for times in self.times],
        }


def exchange_table(costs: Sequence[ExchangeCost], cpus: int) -> Table:
    """All of them, with what they mean."""
    crowded = sorted({cost.ranks for cost in costs if cost.ranks > cpus})
    notes = [
        "Median (quartiles) over all ranks and steps, which begin header and all-to-all together.",
        "job: the background job (store candidates, agree, plan, gather, exchange) without such a start;",
        "a rank that is early waits in it for the others.",
        "MB/s: 10^6 bytes that a rank receives from others, by the time of its all-to-all.",
    ]
    if crowded:
        notes.append(
            f"{', '.join(map(str, crowded))} ranks on {cpus} CPUs take turns: most of these times is waiting "
            "for a CPU."
        )
    return Table(
        "Exchange between real ranks (gloo, one machine)",
        ("ranks", "rows", "row bytes", "header us", "gather ms", "all-to-all ms", "job ms", "MB/s"),
        tuple(cost.line() for cost in costs),
        tuple(notes),
    )
