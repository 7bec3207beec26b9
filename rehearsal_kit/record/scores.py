"""How good the network was on each task and when; kept up to date record by record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rehearsal_kit.record.records import UNTRAINED, Evaluated


@dataclass(frozen=True)
class _Split:
    errors: dict[int, dict[int, float]] = field(default_factory=dict)
    """Errors by task, then by the task after which it was evaluated, in order."""
    before: dict[int, float] = field(default_factory=dict)
    """Last error on each task before it was trained, but after another was."""
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """The last of each task that had been trained."""
    points: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Steps and errors of all evaluations of the watched samples, by task."""


class Scores:
    """Takes in evaluations in order."""

    def __init__(self) -> None:
        self._splits: dict[str, _Split] = {}

    def take(self, record: Evaluated) -> None:
        """One more evaluation."""
        split = self._splits.setdefault(record.split, _Split())
        error = record.error
        split.errors.setdefault(record.task, {})[record.after] = error
        if record.after >= record.task:
            split.metrics[record.task] = record.metrics
        elif record.after != UNTRAINED:
            split.before[record.task] = error
        if record.split == "watched":
            steps, errors = split.points.setdefault(record.task, ([], []))
            steps.append(record.step)
            errors.append(error)

    def errors(self, split: str, task: int) -> dict[int, float]:
        """Error on a task by the task after which it was evaluated, in the order of the first times."""
        return dict(self._of(split).errors.get(task, {}))

    def last(self, split: str) -> dict[int, int]:
        """The newest task after which each task was evaluated."""
        return {task: max(errors) for task, errors in self._of(split).errors.items()}

    def trained(self, split: str) -> dict[int, dict[int, float]]:
        """Errors since a task was trained itself: by task, then by the task after which it was evaluated."""
        since = {
            task: {after: error for after, error in errors.items() if after >= task}
            for task, errors in self._of(split).errors.items()
        }
        return {task: errors for task, errors in since.items() if errors}

    def matrix(self, split: str) -> list[list[float | None]]:
        """Row i, column j: error on task j after task i was trained; None where it was not evaluated."""
        trained = self.trained(split)
        size = 1 + max((max(task, *errors) for task, errors in trained.items()), default=-1)
        return [[trained.get(j, {}).get(i) for j in range(size)] for i in range(size)]

    def untaught(self) -> tuple[list[float | None], list[float | None]]:
        """Test error on each task just before it was trained, and that of the untrained network."""
        split = self._of("test")
        untrained = {t: errors[UNTRAINED] for t, errors in split.errors.items() if UNTRAINED in errors}
        before = {**({0: untrained[0]} if 0 in untrained else {}), **split.before}
        tasks = range(1 + max([*before, *untrained], default=-1))
        return [before.get(task) for task in tasks], [untrained.get(task) for task in tasks]

    def metrics(self, split: str) -> list[Mapping[str, float]]:
        """The last metrics of each task; empty where it was not evaluated."""
        last = self._of(split).metrics
        return [last.get(task, {}) for task in range(1 + max(last, default=-1))]

    def watched(self, most: int) -> dict[int, tuple[list[int], list[float]]]:
        """Steps and watched errors, by task, of the first task and of the newest, `most` tasks in all."""
        points = self._of("watched").points
        shown = sorted(points)
        if len(shown) > most:
            shown = [shown[0], *shown[1 - most :]]
        return {task: ([*points[task][0]], [*points[task][1]]) for task in shown}

    def _of(self, split: str) -> _Split:
        return self._splits.get(split, _Split())
