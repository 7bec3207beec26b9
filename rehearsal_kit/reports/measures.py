"""What a stream of tasks made of a network: final error, forgetting, transfer, and strategies compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rehearsal_kit.base.errors import SettingsError

Matrix = Sequence[Sequence[float | None]]
"""Row i, column j: error on task j after task i was trained; None where it was not evaluated."""


def final_error(matrix: Matrix) -> float:
    """Mean error over all tasks after the last one was trained; NaN without a finished task."""
    last = _known(matrix[-1]) if matrix else []
    return statistics.fmean(last) if last else math.nan


def average_error(matrix: Matrix) -> float | None:
    """Average incremental error: mean error over the tasks trained so far, averaged over the rows.

    After Rebuffi et al. 2017 ("iCaRL", CVPR), there of accuracies. None without an error. Where not
    every earlier task was evaluated after every task, a row counts only those that were, mostly the newest:
    the result is then too low where older tasks have larger errors.
    """
    rows = [known for i, row in enumerate(matrix) if (known := _known(row[: i + 1]))]
    return statistics.fmean(statistics.fmean(known) for known in rows) if rows else None


def forgetting(matrix: Matrix) -> float | None:
    """Final error minus best earlier error, mean over tasks 1 to T-1; None with fewer than two tasks.

    After Chaudhry et al. 2018 ("Riemannian walk for incremental learning", ECCV), there of accuracies.
    The best earlier error is that of the evaluations there are. Each one left out can only have hidden a
    better one, so that with holes in the matrix this is a lower bound of the forgetting of the same tasks.
    """
    losses = []
    for task in range(len(matrix) - 1):
        earlier = _known([row[task] for row in matrix[:-1]])
        final = matrix[-1][task]
        if earlier and final is not None:
            losses.append(final - min(earlier))
    return statistics.fmean(losses) if losses else None


def backward_transfer(matrix: Matrix) -> float | None:
    """Error right after a task was trained minus its final error, mean over tasks 1 to T-1.

    Negative where tasks were forgotten, positive where later tasks helped: Lopez-Paz and Ranzato 2017
    ("Gradient episodic memory", NeurIPS), whose accuracies are errors here, with the sign turned.
    Tasks without one of the two errors are left out; None where none is left.
    """
    return _mean_difference([row[task] for task, row in enumerate(matrix[:-1])], matrix[-1] if matrix else [])


def forward_transfer(before: Sequence[float | None], untrained: Sequence[float | None]) -> float | None:
    """Error of the untrained network minus that just before the task was trained, mean over tasks 2 to T.

    before: error on each task when all tasks before it were trained. untrained: error on each task of the
    network that the stream began with. Positive where earlier tasks help: Lopez-Paz and Ranzato 2017
    ("Gradient episodic memory", NeurIPS), whose accuracies are errors here, with the sign turned.
    Tasks without one of the two errors are left out; None where none is left. Raises SettingsError where
    the two are not of one length.
    """
    _require_pairs(before, untrained, of="task")
    return _mean_difference(untrained[1:], before[1:])


@dataclass(frozen=True)
class GapClosed:
    """How much of the way from Incremental to FromScratch a strategy went."""

    closed: float | None
    """(Incremental - strategy) / (Incremental - FromScratch), of mean errors; None where there is no gap."""
    verdict: str
    """The verdict in words, with the number of seeds."""
    spread: float | None = None
    """Standard deviation over the seeds of (Incremental - strategy) / mean gap; None with one seed."""


def gap_closed(
    strategy: Sequence[float], *, incremental: Sequence[float], from_scratch: Sequence[float]
) -> GapClosed:
    """Compare final errors, one per seed and in the same order of seeds.

    With several seeds a gap counts only where the mean of the paired differences Incremental - FromScratch
    is more than twice their standard deviation, and the share closed is called unresolved where it is
    smaller than twice its own. With one seed there is no spread to judge by, and the verdict says so.
    Raises SettingsError where the numbers of seeds differ.
    """
    gaps, gains = _paired(incremental, from_scratch), _paired(incremental, strategy)
    gap, seeds = statistics.fmean(gaps), len(gaps)
    if seeds == 1:
        if gap <= 0:
            return GapClosed(None, f"no gap: Incremental - FromScratch = {gap:.4f} (one seed)")
        return GapClosed(gains[0] / gap, f"{gains[0] / gap:.2f} (one seed, no spread known)")
    if not gap > 2 * _deviation(gaps):
        return GapClosed(
            None, f"no gap: Incremental - FromScratch = {gap:.4f} +- {_deviation(gaps):.4f}, {seeds} seeds"
        )
    closed, spread = statistics.fmean(gains) / gap, _deviation(gains) / gap
    doubt = "" if _resolved(closed, spread) else "unresolved: "
    return GapClosed(closed, f"{doubt}{closed:.2f} +- {spread:.2f} ({seeds} seeds)", spread)


def beside(first: Sequence[float], second: Sequence[float]) -> str:
    """Whether the final errors of the first strategy differ from those of the second, in words.

    One error per seed, in the same order of seeds: the mean of the paired differences is resolved where it
    is not zero and at least twice their standard deviation. Raises SettingsError where the numbers of
    seeds differ.
    """
    differences = _paired(first, second)
    if len(differences) == 1:
        return "one seed"
    mean, spread = statistics.fmean(differences), _deviation(differences)
    if not _resolved(mean, spread):
        return f"unresolved (diff {mean:.2g} +- {spread:.2g})"
    return f"{'lower' if mean < 0 else 'higher'} by {abs(mean):.2g} +- {spread:.2g}"


def _known(errors: Sequence[float | None]) -> list[float]:
    return [error for error in errors if error is not None]


def _mean_difference(left: Sequence[float | None], right: Sequence[float | None]) -> float | None:
    # Not strict: the last row of a matrix has the last task, too, which has no transfer.
    pairs = zip(left, right, strict=False)
    differences = [one - other for one, other in pairs if one is not None and other is not None]
    return statistics.fmean(differences) if differences else None


def _paired(left: Sequence[float], right: Sequence[float]) -> list[float]:
    _require_pairs(left, right, of="seed")
    if not left:
        raise SettingsError("there are no final errors; give those of at least one seed.")
    return [one - other for one, other in zip(left, right, strict=True)]


def _require_pairs(left: Sequence[float | None], right: Sequence[float | None], *, of: str) -> None:
    if len(left) != len(right):
        raise SettingsError(
            f"{len(left)} errors came to be compared with {len(right)}; both need one per {of}, in the same "
            f"order. Leave out of both, or run, the {of}s that are missing in one."
        )


def _deviation(values: Sequence[float]) -> float:
    # statistics.stdev fails on NaN, the final error of a run without a finished task.
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _resolved(mean: float, spread: float) -> bool:
    return mean != 0 and abs(mean) >= 2 * spread
