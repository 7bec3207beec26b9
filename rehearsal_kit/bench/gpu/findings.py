"""What a rank has measured for `bench gpu`: plain numbers, before anybody judges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rehearsal_kit.bench.gpu.attainable import Attainable
from rehearsal_kit.bench.ranks.exchange_ranks import RankTimes

WITH, WITHOUT, FASTEST, FROM_HOST = "with", "without", "fastest", "from host memory"
"""Blocks: with rehearsal, with as many new samples instead, with rehearsal by the fastest algorithms, and, on
GPUs, with the buffer in host memory in any case."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Synchronisations of the host with the device in steps of one strategy."""

    steps: int
    here: Mapping[str, int]
    """Number by line, in the thread that trains."""
    elsewhere: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device."""

    peak: int
    """The most that steps with rehearsal held."""
    before: int
    """What a session holds between two steps."""


@dataclass(frozen=True, kw_only=True)
class CaseFindings:
    """What one rank has measured of a case; seconds unless said otherwise."""

    blocks: Mapping[str, list[float]]
    """A step, block by block, of each kind of block."""
    waited_s: float
    """Waiting for the background job, of a step with rehearsal; known on rank 0."""
    rows: float
    """Samples of a step with rehearsal; known on rank 0."""
    repeatable: Attainable
    """The step of the card itself, by algorithms that give the same bits each time."""
    fastest: Attainable
    """The same by the fastest ones."""
    counted: Mapping[str, Counted]
    """Those in steps of each strategy, by its name."""
    memory: Memory | None
    """None on a CPU."""
    buffer_there: bool
    """Whether the buffer lay on the device."""
    checkpoints: list[float]
    """What a step takes longer that begins with a checkpoint."""
    checkpoint_bytes: int
    written: list[float]
    """Seconds from the copy to the last byte on disk."""
    evaluations: list[float]
    """What a step takes longer before which all watched and test samples are evaluated."""
    sums: list[float] = field(default_factory=list)
    """The sum of the gradients over all ranks, alone; empty on a single rank."""
    exchange: RankTimes | None = None
    """The background work of a step between hosts, alone; None on a single rank."""
    exchange_there: list[float] = field(default_factory=list)
    """The exchange of a step between devices, alone; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class RankFindings:
    """What one rank has measured."""

    cases: tuple[CaseFindings, ...]
    copies: Mapping[str, list[float]]
    """Bytes per second."""
    versions: Mapping[str, str]
    """Card, driver and libraries."""
