"""A run as tables of pandas: its tasks, its checkpoints."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.kept_checkpoints import kept_checkpoints
from rehearsal_kit.session.left_out import left_open, unnumbered


def results_table(timeline: Timeline, branch: int | None = None) -> pd.DataFrame:
    """One row per task: test error right after it was trained and now, and all metrics of now.

    branch: of a run that was rolled back; None: the newest.

    "error" is the share of wrong classes, or the mean absolute error summed over the fields; NaN where a
    task was not evaluated (yet). "stability gap" is there where `Training.stability_every` asked for it: the
    largest watched error of earlier tasks in the first 50 steps of this one, relative to that before; 1 where
    none became worse. "set aside" and "not evaluated" are there where a task was, or could not be
    any more, and say why. Index: number of the task; missing for one set aside before it had a number.
    """
    timeline = timeline.lineage(branch)
    errors, metrics = timeline.scores(lambda scores: scores.trained("test")), timeline.metrics("test")
    before, _ = timeline.untaught()
    gaps = timeline.stability_gaps()
    rows: list[dict[str, Any]] = []
    for task, arrived in timeline.tasks().items():
        of_task = errors.get(task, {})
        known = [of_task[after] for after in sorted(of_task)]
        learned = of_task.get(task)
        rows.append({
            "task": task,
            "name": arrived.name,
            "training samples": arrived.training,
            "error before": before[task] if task < len(before) else None,
            "error when learned": learned,
            "error now": known[-1] if known else None,
            "change": known[-1] - learned if known and learned is not None else None,
            **({"stability gap": gaps.get(task)} if gaps else {}),
            **(metrics[task] if task < len(metrics) else {}),
        })  # fmt: skip
    aside = {task: record.reason for task, record in timeline.set_aside().items()}
    for column, reasons in (("set aside", aside), ("not evaluated", left_open(timeline, "test"))):
        for row in rows if reasons else ():
            row[column] = reasons.get(row["task"], "")
    rows += [
        {"task": None, "name": record.name, "set aside": record.reason} for record in unnumbered(timeline)
    ]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    if table["task"].isna().any():
        table["task"] = table["task"].astype("Int64")
    table = table.set_index("task")
    words = [name for name in ("name", "set aside", "not evaluated") if name in table]
    table[words] = table[words].fillna("")
    numbers = [name for name in table.columns if name not in words]
    return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})


def checkpoints_table(timeline: Timeline) -> pd.DataFrame:
    """One row per checkpoint that is whole on disk. Index: its number."""
    rows = [
        {
            "checkpoint": taken.checkpoint,
            "branch": taken.branch,
            "step": taken.step,
            "watched error": kept.error,
            "bytes": kept.bytes,
            "taken": pd.Timestamp(taken.time, unit="s", tz="UTC"),
        }
        for taken, kept in kept_checkpoints(timeline)
    ]
    columns = ["checkpoint", "branch", "step", "watched error", "bytes", "taken"]
    return pd.DataFrame(rows, columns=columns).set_index("checkpoint")
