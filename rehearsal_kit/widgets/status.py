"""What a timeline says in words and numbers: the facts of the state line and the list of tasks."""

from __future__ import annotations

from html import escape

from rehearsal_kit.telemetry import Evaluated, Steps, TaskArrived, TaskBegan, TaskEnded, TaskSetAside
from rehearsal_kit.timeline import Timeline
from rehearsal_kit.widgets.figures import task_colour

RECENT = 12
"""Records of steps over which speed and waiting are averaged."""

_CSS = """<style>
.rk-tasks { border-collapse: collapse; width: 100%; font-size: 12px; line-height: 1.35; }
.rk-tasks th { text-align: left; font-weight: 600; color: var(--jp-ui-font-color2); }
.rk-tasks td, .rk-tasks th { padding: 2px 12px 2px 0; vertical-align: top; white-space: nowrap; }
.rk-tasks td.rk-task { width: 100%; max-width: 0; overflow: hidden; text-overflow: ellipsis; }
.rk-tasks .rk-right { text-align: right; padding: 2px 4px 2px 12px; font-variant-numeric: tabular-nums; }
.rk-tasks .rk-reason { color: var(--jp-warn-color1, #a85a00); white-space: normal; overflow-wrap: anywhere; }
.rk-note { margin: 6px 0 0; font-size: 11px; line-height: 1.35; white-space: normal;
  color: var(--jp-ui-font-color2); }
.rk-swatch { display: inline-block; width: 16px; height: 4px; margin: 0 7px 3px 0; border-radius: 2px; }
</style>"""


def facts(timeline: Timeline, *, state: str, ranks: int) -> list[tuple[str, str]]:
    """Names and values of the state line; an en dash where there is nothing to say yet."""
    began = timeline.last(TaskBegan)
    arrived = len(timeline.records(TaskArrived))
    recent = timeline.records(Steps)[-RECENT:]
    steps = sum(len(record.losses) for record in recent)
    seconds = sum(record.seconds for record in recent)
    moving = state == "running" and seconds > 0

    def share(part: float) -> str:
        return f"{part / seconds:.0%}" if seconds > 0 else "–"  # noqa: RUF001

    return [
        ("task", f"{began.task + 1} of {arrived}" if began else f"0 of {arrived}"),
        ("step", str(recent[-1].first + len(recent[-1].losses)) if recent else "0"),
        ("steps/s", f"{steps / seconds:.1f}" if moving else "–"),  # noqa: RUF001
        ("samples stored", str(recent[-1].stored) if recent else "0"),
        ("ranks", str(ranks)),
        ("waited for samples", share(sum(record.waited for record in recent))),
        ("hidden", share(sum(record.hidden for record in recent))),
    ]


def tasks_html(timeline: Timeline) -> str:
    """What became of each task, its colour in the curves, and how much of it is forgotten."""
    began = {record.task for record in timeline.records(TaskBegan)}
    ended = {record.task for record in timeline.records(TaskEnded)}
    errors = _watched(timeline)
    rows = [
        _row(
            record,
            "trained" if record.task in ended else "training" if record.task in began else "arrived",
            errors.get(record.task, {}),
        )
        for record in timeline.records(TaskArrived)
    ]
    rows += [_aside(record) for record in timeline.records(TaskSetAside)]
    right = "<th class='rk-right'>"
    head = f"<th>task</th><th>state</th>{right}error</th>{right}change</th>"
    body = "".join(rows) or "<tr><td colspan='4'>no task has arrived yet</td></tr>"
    note = "<p class='rk-note'>error: on the watched samples, now; change: since the task was learned</p>"
    return f"{_CSS}<table class='rk-tasks'><tr>{head}</tr>{body}</table>{note}"


def _watched(timeline: Timeline) -> dict[int, dict[int, float]]:
    """For each task its watched error by the task after which it was measured, oldest first."""
    errors: dict[int, dict[int, float]] = {}
    for record in timeline.records(Evaluated):
        if record.split == "watched":
            errors.setdefault(record.task, {})[record.after] = record.error
    return errors


def _row(record: TaskArrived, state: str, errors: dict[int, float]) -> str:
    learned, now = errors.get(record.task), next(reversed(errors.values()), None)
    change = f"{now / learned - 1:+.0%}" if learned and now is not None and len(errors) > 1 else ""
    swatch = f"<span class='rk-swatch' style='background:{task_colour(record.task)}'></span>"
    about = (
        f"{record.training} training, {record.watched} watched, {record.test} test, {record.skipped} skipped"
    )
    return (
        f"<tr title='{escape(about)}'><td class='rk-task'>{swatch}{record.task} {escape(record.name)}</td>"
        f"<td>{state}</td><td class='rk-right'>{'' if now is None else f'{now:.4f}'}</td>"
        f"<td class='rk-right'>{change}</td></tr>"
    )


def _aside(record: TaskSetAside) -> str:
    return (
        f"<tr title='{escape(record.path)}'><td class='rk-task'>{escape(record.name)}</td>"
        f"<td>set aside</td></tr><tr><td class='rk-reason' colspan='4'>{escape(record.reason)}</td></tr>"
    )
