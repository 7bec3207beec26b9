"""What one step of the local store costs, beside other libraries and beside the least work possible."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rehearsal_kit.bench.store.floor import Floor
from rehearsal_kit.bench.store.ours import OurStore, WholeBuffer
from rehearsal_kit.bench.store.peers import avalanche, torchrl_fifo, torchrl_reservoir
from rehearsal_kit.bench.store.side_by_side import Paired, cpu_us, in_turns
from rehearsal_kit.bench.store.workload import Contestant, Workload
from rehearsal_kit.bench.table import Table

LATE = 10
"""Times the capacity that have been seen where samples come late."""
BLOCK_S = 0.25
"""CPU time after which a slow contestant's block ends."""
FEWEST_STEPS = 5
PHASES = ("update", "draw", "both")
COLUMNS = ("buffer", "gets", "seen", *(f"{p} us" for p in PHASES), *(f"{p}/floor" for p in PHASES))


@dataclass(frozen=True)
class Effort:
    """How long is measured."""

    rounds: int
    """Blocks of each contestant; each has one of the floor beside it."""
    steps: int
    """Steps per block, fewer where a step is slow."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the comparison."""

    name: str
    build: Callable[[Workload], Contestant]
    everything: bool = False
    """Offered whole mini-batches, of which it chooses; else only the candidates. The floor likewise."""
    late: bool = False
    """Ten times the capacity have been seen; else exactly the capacity."""
    module: str = ""
    """That must be installed."""
    extra: str = ""
    """Extra of this package that installs the module."""
    caution: str = ""
    """What a person should know before installing it."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What came out for one entry."""

    entry: Entry
    phases: dict[str, Paired]
    missing: str = ""
    """Why it could not be measured."""

    def line(self, workload: Workload) -> tuple[str, ...]:
        """This outcome's line of the table."""
        if self.missing:
            return (
                self.entry.name,
                f"missing: pip install 'rehearsal-kit[{self.entry.extra}]'{self.entry.caution}",
            )
        offered = workload.batch if self.entry.everything else workload.candidates
        found = [self.phases.get(phase) for phase in PHASES]
        return (
            self.entry.name,
            str(offered),
            f"{LATE if self.entry.late else 1} x",
            *(f"{paired.cost.median:.0f}" if paired else "-" for paired in found),
            *(paired.ratio.text(2) if paired else "-" for paired in found),
        )

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.entry.name,
            "gets_whole_mini_batches": self.entry.everything,
            "seen_times_capacity": LATE if self.entry.late else 1,
            "missing": self.missing,
            "extra": self.entry.extra,
            "phases": {phase: paired.data() for phase, paired in self.phases.items()},
        }


def entries() -> tuple[Entry, ...]:
    """All lines of the comparison."""
    return (
        Entry(name="floor (against itself)", build=_floor),
        Entry(name="rehearsal_kit quotas", build=functools.partial(_filled, policy="quotas")),
        Entry(name="rehearsal_kit fifo", build=functools.partial(_filled, policy="fifo")),
        Entry(name="rehearsal_kit whole (quotas)", build=_whole),
        Entry(name="TorchRL fifo", build=torchrl_fifo, module="torchrl", extra="bench"),
        Entry(name="TorchRL own reservoir", build=torchrl_reservoir, module="torchrl", extra="bench"),
        Entry(
            name="Avalanche reservoir",
            build=avalanche,
            module="avalanche",
            extra="bench-avalanche",
            caution=" in a fresh environment: its torchvision may bring another torch",
        ),
        Entry(name="rehearsal_kit reservoir", build=_reservoir, everything=True),
        Entry(name="rehearsal_kit reservoir late", build=_late_reservoir, everything=True, late=True),
    )


def measure(entry: Entry, workload: Workload, effort: Effort) -> Outcome:
    """One entry and the floor in turns; in this process."""
    if entry.module and importlib.util.find_spec(entry.module) is None:
        return Outcome(entry, {}, missing=f"no module {entry.module}")
    try:
        contestant = entry.build(workload)
    except ImportError as error:
        if not entry.extra:
            raise
        return Outcome(entry, {}, missing=str(error))
    seen = workload.capacity * (LATE if entry.late else 1)
    floor = Floor(workload, seen=seen, everything=entry.everything).contestant(resets=not entry.late)
    try:
        phases = {p: _paired(contestant, floor, phase=p, effort=effort) for p in contestant.phases}
        return Outcome(entry, phases)
    finally:
        contestant.close()


def table(outcomes: Sequence[Outcome], workload: Workload, effort: Effort) -> Table:
    """All outcomes, with what they mean."""
    return Table(
        f"CPU time per step, all threads, median of {effort.rounds} rounds; store of {workload.capacity:,} "
        f"rows of {workload.row_bytes:,} bytes, full; b={workload.batch} c={workload.candidates} "
        f"r={workload.representatives}",
        COLUMNS,
        tuple(outcome.line(workload) for outcome in outcomes),
        (
            "gets: samples of each mini-batch that the store is given; the floor of that line gets as many.",
            "seen: distinct samples seen when measuring begins, as multiple of the capacity.",
            "us: microseconds. /floor: median (quartiles) over rounds of the ratio to the floor in the same",
            "round and process. The first line is the floor against itself: it shows the noise.",
            "Our reservoir gets all samples and decides by a tag of each which to keep.",
            "Where only c are given, picking them is part of the update.",
            "Avalanche keeps references to what it is offered and copies nothing.",
        ),
    )


def _paired(contestant: Contestant, floor: Contestant, *, phase: str, effort: Effort) -> Paired:
    steps = _affordable(contestant, phase, effort.steps)

    def block(of: Contestant) -> float:
        if phase != "draw":  # which changes nothing
            of.reset()
        return cpu_us(of.phases[phase], steps=steps, settle=of.settle)

    return in_turns(lambda: block(contestant), lambda: block(floor), rounds=effort.rounds)


def _affordable(contestant: Contestant, phase: str, most: int) -> int:
    began = time.process_time()
    contestant.phases[phase]()
    contestant.settle()
    cost = time.process_time() - began
    return max(min(most, int(BLOCK_S / cost)), min(most, FEWEST_STEPS))


def _floor(workload: Workload) -> Contestant:
    return Floor(workload, seen=workload.capacity, everything=False).contestant()


def _filled(workload: Workload, *, policy: str) -> Contestant:
    return OurStore(workload, policy).fill().contestant()


def _reservoir(workload: Workload) -> Contestant:
    return OurStore(workload, "reservoir").fill().keep().contestant()


def _late_reservoir(workload: Workload) -> Contestant:
    return OurStore(workload, "reservoir").fill().see(LATE * workload.capacity).contestant()


def _whole(workload: Workload) -> Contestant:
    return WholeBuffer(workload).contestant()
