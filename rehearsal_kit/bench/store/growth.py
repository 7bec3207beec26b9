"""What a long stream, a large store and its rows cost: time per step and memory, for each policy."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from rehearsal_kit.bench.spread import Spread
from rehearsal_kit.bench.store.ours import OurStore
from rehearsal_kit.bench.store.side_by_side import cpu_us
from rehearsal_kit.bench.store.workload import SLIM_FIELDS, WIDE_FIELDS, TaskStream, Workload

BLOCK = 10
"""Steps between two looks at the clock where the stream's length is what changes."""
STREAM_CAPACITY = 1000


@dataclass(frozen=True)
class Growth:
    """Microseconds of CPU time per step (update and draw), at each size, round by round."""

    sizes: tuple[int, ...]
    rounds: tuple[tuple[float, ...], ...]
    """(round, size)."""

    @property
    def ratios(self) -> list[Spread]:
        """Cost at each size over that at the first size in the same round."""
        columns = zip(*self.rounds, strict=True)
        firsts = [line[0] for line in self.rounds]
        return [Spread.of([a / b for a, b in zip(c, firsts, strict=True)]) for c in columns]

    def cells(self) -> tuple[str, ...]:
        """One text for each size: median and, in brackets, median ratio to the first."""
        costs = [Spread.of(column).median for column in zip(*self.rounds, strict=True)]
        return tuple(f"{c:.0f} ({r.median:.2f})" for c, r in zip(costs, self.ratios, strict=True))

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sizes": list(self.sizes),
            "cpu_us": [list(line) for line in self.rounds],
            "ratio": [ratio.median for ratio in self.ratios],
        }


@dataclass(frozen=True)
class Resident:
    """Memory that the operating system counts for one process, in bytes."""

    before: int
    """Bytes with everything imported and used once, but for the store."""
    grown: int
    """Bytes added by a store that was filled."""
    rows: int
    """What the rows of that store add up to."""

    @property
    def ratio(self) -> float:
        """Memory taken per byte of rows."""
        return self.grown / self.rows


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is tried."""

    batches: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    """Lengths of the stream, in mini-batches."""
    capacities: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    resident: int = 10_000
    """Rows of 48 KiB whose memory is looked at."""
    stream_rounds: int = 15
    capacity_rounds: int = 2
    fewest_steps: int = 1000
    """Over which a small capacity is measured in each round, filled anew as often as that takes."""


QUICK = Sizes(
    batches=(20, 40), capacities=(112, 224), resident=2000, stream_rounds=2, capacity_rounds=1, fewest_steps=5
)
"""Only to see that it works."""


@dataclass(frozen=True)
class Found:
    """All of one policy."""

    policy: str
    stream: Growth
    capacity: Growth
    resident: Resident

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "policy": self.policy,
            "stream": self.stream.data(),
            "capacity": self.capacity.data(),
            "resident": {**asdict(self.resident), "ratio": self.resident.ratio},
        }


def measure(policy: str, sizes: Sizes) -> Found:
    """All of one policy, in this process; the memory first, while the process is fresh."""
    return Found(
        policy,
        resident=_resident(policy, sizes),
        stream=_along_the_stream(policy, sizes),
        capacity=_with_the_capacity(policy, sizes),
    )


def _along_the_stream(policy: str, sizes: Sizes) -> Growth:
    """Costs of stores that have seen streams of these lengths, measured in turns."""
    workload = Workload(capacity=STREAM_CAPACITY, fields=SLIM_FIELDS)
    stores = [OurStore(workload, policy).fill().see(batches * workload.batch) for batches in sizes.batches]
    for store in stores:
        cpu_us(store.step, steps=BLOCK)
    rounds = [tuple(cpu_us(store.step, steps=BLOCK) for store in stores) for _ in range(sizes.stream_rounds)]
    return Growth(sizes.batches, tuple(rounds))


def _with_the_capacity(policy: str, sizes: Sizes) -> Growth:
    rounds = [
        tuple(
            _beyond_full(policy, capacity, fewest_steps=sizes.fewest_steps) for capacity in sizes.capacities
        )
        for _ in range(sizes.capacity_rounds)
    ]
    return Growth(sizes.capacities, tuple(rounds))


def _beyond_full(policy: str, capacity: int, *, fewest_steps: int) -> float:
    """Mean cost from full until a quarter more has been seen.

    Then a reservoir of any size rejects the same share of its offers and makes room as often, which it does
    at once for a thirtysecond of its rows.
    """
    workload = Workload(capacity=capacity, fields=SLIM_FIELDS)
    steps = -(-capacity // (4 * workload.batch))
    repeated = [
        cpu_us(OurStore(workload, policy).fill().step, steps=steps) for _ in range(-(-fewest_steps // steps))
    ]
    return sum(repeated) / len(repeated)


def _resident(policy: str, sizes: Sizes) -> Resident:
    workload = Workload(capacity=sizes.resident, fields=WIDE_FIELDS)
    stream = TaskStream(workload, identified=True)
    warm = Workload(capacity=4 * workload.batch, fields=WIDE_FIELDS)
    OurStore(warm, policy, stream=stream).fill().step()
    before = _resident_bytes()
    store = OurStore(workload, policy, stream=stream).fill()
    grown = _resident_bytes() - before
    return Resident(before, grown, rows=store.held * store.row_bytes)


def _resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)
