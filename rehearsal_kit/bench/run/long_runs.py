"""Runs of any length as they would be told, without any training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rehearsal_kit.record.records import (
    UNTRAINED,
    Applied,
    CheckpointKept,
    CheckpointTaken,
    Evaluated,
    Record,
    StateChanged,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    to_plain,
)
from rehearsal_kit.record.timeline_cache import condense
from rehearsal_kit.record.timeline_file import EVERY

EACH = 20
"""Steps in a record."""
PER_S = 4
"""Records of steps in a second."""
CHECKPOINT = 60 * PER_S
"""Records of steps between two checkpoints: a minute."""
AHEAD = 50
"""Tasks that have arrived and wait."""
EARLIER = 8
"""Tasks that are evaluated again after every task."""
ON_DISK = 3


@dataclass(frozen=True)
class LongRun:
    """How much there is to tell."""

    steps: int
    """Records of steps."""
    tasks: int

    def records(self) -> Iterator[Record]:
        """All that rank 0 tells, in order."""
        yield _live_settings(0, 1)
        arrived = told = checkpoint = 0
        for task in range(self.tasks):
            for number in range(arrived, min(self.tasks, task + AHEAD)):
                yield _arrived(number)
            arrived = max(arrived, min(self.tasks, task + AHEAD))
            first, end = told, self.steps * (task + 1) // self.tasks
            yield StateChanged(step=first * EACH, state="running")
            yield from _evaluated(task, after=UNTRAINED, step=first * EACH, splits=("test",))
            yield TaskBegan(step=first * EACH, task=task, steps=(end - first) * EACH, time=first / PER_S)
            for told in range(first, end):
                yield _steps(told, task)
                if told % CHECKPOINT == 0:
                    checkpoint += 1
                    yield from _checkpoint(checkpoint, told * EACH + EACH)
            told = end
            for each in sorted({max(0, task - 7 * back) for back in range(EARLIER)} | {0, task}):
                yield from _evaluated(each, after=task, step=end * EACH, splits=("watched", "test"))
            yield TaskEnded(step=end * EACH, task=task, seconds=(end - first) / PER_S, time=end / PER_S)

    def write(self, path: Path) -> None:
        """Write it as rank 0 would: with a cache that lacks the last EVERY lines, the most it ever lacks."""
        lines = [0]
        with path.open("wb") as stream:
            for record in self.records():
                lines.append(stream.write(_line(record)))
        size, tail = path.stat().st_size, sum(lines[-EVERY:])
        if len(lines) > EVERY:
            whole = path.read_bytes()[-tail:]
            with path.open("r+b") as stream:
                stream.truncate(size - tail)
            condense(path)
            with path.open("ab") as stream:
                stream.write(whole)


def _line(record: Record) -> bytes:
    # Most are about steps, for which a general way of making them plain takes most of the time.
    plain = {"record": "Steps", **vars(record)} if isinstance(record, Steps) else to_plain(record)
    return json.dumps(plain).encode() + b"\n"


def _steps(number: int, task: int) -> Steps:
    first = number * EACH
    return Steps(
        first=first,
        task=task,
        losses=tuple(0.1 + (first + i) * 7919 % 1000 / 1e4 for i in range(EACH)),
        seconds=1 / PER_S,
        waited=0.01,
        hidden=0.1,
        representatives=8 * EACH,
        remote=4 * EACH,
        stored=2000,
        time=number / PER_S,
        terms={"augmented": 0.1},
        busy=(0.2, 0.2),
    )


def _arrived(task: int) -> TaskArrived:
    return TaskArrived(
        step=0, task=task, name=f"scan_{task:05d}", path=f"/data/scan_{task:05d}.cxi", training=1600,
        watched=100, test=200, skipped=3, simulated=True,
    )  # fmt: skip


def _evaluated(task: int, *, after: int, step: int, splits: tuple[str, ...]) -> Iterator[Evaluated]:
    for split in splits:
        errors = {"amplitude": 0.05 + task % 7 / 100, "phase": 0.1 + after % 5 / 100}
        metrics = {"amplitude SSIM": 0.9, "phase SSIM": 0.8}
        yield Evaluated(step=step, after=after, task=task, split=split, errors=errors, metrics=metrics)


def _checkpoint(number: int, step: int) -> Iterator[Record]:
    yield CheckpointTaken(step=step, checkpoint=number, weights="0" * 16, time=step / (EACH * PER_S))
    yield _live_settings(step, 0)
    gone = (number - ON_DISK,) if number > ON_DISK else ()
    yield CheckpointKept(checkpoint=number, bytes=10**8, seconds=2.0, error=0.1, removed=gone)


def _live_settings(step: int, number: int) -> Applied:
    settings: dict[str, float | str] = {
        "learning_rate": 1e-3,
        "batch": 8,
        "representatives": 8,
        "strategy": "ER",
    }
    kind = "Steer" if number else "TakeCheckpoint"
    return Applied(rank=0, step=step, number=number, kind=kind, settings=settings, digest="0" * 16)
