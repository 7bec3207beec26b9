"""What is told of ranks and processes rather than of training: who joined, how a generation or run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A rank is up and has met the others."""

    rank: int
    ranks: int
    device: str
    process: int
    """Process id."""
    time: float
    """Seconds since the epoch."""
    generation: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    """What decides about the bits that its device computes, besides the versions of the run. Empty in runs of
    versions up to November 2026."""


@dataclass(frozen=True, kw_only=True)
class GenerationBegan:
    """A set of ranks is being started; told from the scheduler's side."""

    generation: int
    workers: tuple[str, ...]
    """Their addresses, in order of rank."""
    time: float
    of: int = 0
    """How many the run was started with: it may go on with fewer. 0 where an earlier version wrote it."""


@dataclass(frozen=True, kw_only=True)
class GenerationEnded:
    """Why a set of ranks has ended before the run has.

    A rank died, failed or was stuck: all of them begin again, unless that has been tried too often. Or more
    of them go on, after the end of a task.
    """

    generation: int
    reason: str
    time: float


@dataclass(frozen=True, kw_only=True)
class Stalled:
    """A rank has not made progress for so long; told from the scheduler's side."""

    rank: int
    seconds: float
    """0: it goes on again."""
    time: float


@dataclass(frozen=True, kw_only=True)
class LeaseTaken:
    """A kernel steers from now on, and no other; told from the scheduler's side."""

    holder: str
    time: float


@dataclass(frozen=True, kw_only=True)
class RunOver:
    """The run has ended; told from the scheduler's side, which knows of all ranks."""

    outcome: str
    """finished, stopped, failed; or interrupted, if its cluster has ended: it goes on where it is resumed."""
    error: str
    """The first error of the first rank that failed, or what to do after an interruption; else empty."""
    time: float
    moves_to: str = ""
    """Number of the job that goes on with it by itself, if one does."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A rank has ended: finished, stopped, interrupted, regrouped or failed."""

    rank: int
    step: int
    outcome: str
    error: str = ""
    """What the first error of this rank says, see `said_where`; empty unless it failed."""
    time: float
    generation: int = 0
    weights: str = ""
    """Fingerprint of its weights; empty if it failed."""
    fatal: bool = False
    """Whether it would fail in the same way however often it is started."""
    device: str = ""
    """UUID and name of its card, where it was the card that failed."""
    consequence: bool = False
    """Whether it failed because of another rank, which says why."""
