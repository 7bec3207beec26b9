"""How good a network is: errors by field, and what a stream of tasks made of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rehearsal_kit.groups import Groups

PHASE_FIELDS = frozenset({"phase"})
"""Fields in rad, defined up to a multiple of 2 pi and up to a constant per scan."""


def wrap(angle: torch.Tensor) -> torch.Tensor:
    """The same angle in [-pi, pi), rad."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class FieldErrors:
    """Mean absolute error by field over the samples of one scan, spread over batches and ranks.

    The phase of a reconstruction has a free constant. It is fitted once for the whole scan, as the circular
    mean of the difference, never per patch: a network must not be excused for a constant that changes
    from patch to patch. What is left is wrapped into [-pi, pi).
    """

    def __init__(self) -> None:
        self._differences: dict[str, list[torch.Tensor]] = {}

    def add(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
        """Add a batch; each tensor is (sample, ...). Outputs without a target are left out."""
        for name, output in outputs.items():
            if name in targets:
                self._differences.setdefault(name, []).append((output - targets[name]).double().flatten())

    def over_all(self, groups: Groups, names: Sequence[str] = ("amplitude", "phase")) -> dict[str, float]:
        """The errors over all ranks, on every rank; a field that no rank has is left out."""
        errors: dict[str, float] = {}
        for name in names:
            parts = self._differences.get(name, [])
            difference = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
            if name in PHASE_FIELDS:
                turned = torch.stack([difference.cos().sum(), difference.sin().sum()])
                cosine, sine = groups.sum(turned).tolist()
                difference = wrap(difference - math.atan2(sine, cosine))
            size = torch.tensor(float(difference.numel()), dtype=torch.float64)
            total, count = groups.sum(torch.stack([difference.abs().sum(), size])).tolist()
            if count:
                errors[name] = total / count
        return errors


Matrix = Sequence[Sequence[float | None]]
"""Row i, column j: error on task j after task i was trained; None where it was not evaluated."""


def final_error(matrix: Matrix) -> float:
    """Mean error over all tasks after the last one was trained; NaN without a finished task."""
    last = [error for error in matrix[-1] if error is not None] if matrix else []
    return statistics.fmean(last) if last else math.nan


def forgetting(matrix: Matrix) -> float | None:
    """Final error minus best earlier error, mean over tasks 1 to T-1; None with fewer than two tasks."""
    losses = []
    for task in range(len(matrix) - 1):
        earlier = [row[task] for row in matrix[:-1] if row[task] is not None]
        final = matrix[-1][task]
        if earlier and final is not None:
            losses.append(final - min(e for e in earlier if e is not None))
    return statistics.fmean(losses) if losses else None


@dataclass(frozen=True)
class GapClosed:
    """How much of the way from Incremental to FromScratch a strategy went."""

    closed: float | None
    """(Incremental - strategy) / (Incremental - FromScratch), of mean errors; None where there is no gap."""
    verdict: str
    """In words, with the number of seeds."""


def gap_closed(
    strategy: Sequence[float], incremental: Sequence[float], from_scratch: Sequence[float]
) -> GapClosed:
    """Compare final errors, one per seed and in the same order of seeds.

    With several seeds a gap counts only where the mean of the paired differences Incremental - FromScratch
    is more than twice their standard deviation. With one seed there is no spread to judge it by, and the
    verdict says so.
    """
    gaps = [low - high for low, high in zip(incremental, from_scratch, strict=True)]
    gap = statistics.fmean(gaps)
    seeds = len(gaps)
    if seeds > 1 and gap <= 2 * statistics.stdev(gaps):
        return GapClosed(
            None,
            f"no gap: Incremental - FromScratch = {gap:.4f} +- {statistics.stdev(gaps):.4f}, {seeds} seeds",
        )
    if gap <= 0:
        return GapClosed(None, f"no gap: Incremental - FromScratch = {gap:.4f} (one seed)")
    closed = (statistics.fmean(incremental) - statistics.fmean(strategy)) / gap
    return GapClosed(
        closed, f"{closed:.2f} ({'one seed, no spread known' if seeds == 1 else f'{seeds} seeds'})"
    )
