"""What a timeline says in words and numbers: the facts of the state line, its banner, the list of tasks."""

from __future__ import annotations

import itertools
import statistics
import time
from bisect import bisect_right
from html import escape

from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, RunOver, Stalled
from rehearsal_kit.record.records import (
    CheckpointFailed,
    CheckpointKept,
    NotKept,
    StateChanged,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.run_states import ENDED, INTERRUPTED
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.backlog import backlog
from rehearsal_kit.reports.figures import task_colour
from rehearsal_kit.session.left_out import left_open

RECENT = 12
"""Records of steps over which speed and waiting are averaged."""
OVER = (*ENDED, "left")
UNDER_WAY = ("running", "waiting", "paused")
REASON_LENGTH = 700
SLOW = 2.5
"""So many times as long as the others: then a rank is called slow."""
LATELY = 20
SHOWN = 50
"""Tasks in the list before and after the one that was begun last, and of those without a number."""

_CSS = """<style>
.rk-tasks { border-collapse: collapse; width: 100%; font-size: 12px; line-height: 1.35; }
.rk-tasks th { text-align: left; font-weight: 600; color: var(--jp-ui-font-color2); }
.rk-tasks td, .rk-tasks th { padding: 2px 12px 2px 0; vertical-align: top; white-space: nowrap; }
.rk-tasks td.rk-task { width: 100%; max-width: 0; overflow: hidden; text-overflow: ellipsis; }
.rk-tasks .rk-right { text-align: right; padding: 2px 4px 2px 12px; font-variant-numeric: tabular-nums; }
.rk-tasks .rk-reason { color: var(--jp-warn-color1, #a85a00); white-space: normal; overflow-wrap: anywhere; }
.rk-note { margin: 6px 0 0; font-size: 11px; line-height: 1.35; white-space: normal;
  color: var(--jp-ui-font-color2); }
.rk-banner { padding: 3px 12px; border-radius: 4px; line-height: 1.5; overflow-wrap: anywhere;
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color2, #eee); }
.rk-alarm { border-left: 4px solid #c0262d; font-weight: 600; }
.rk-swatch { display: inline-block; width: 16px; height: 4px; margin: 0 7px 3px 0; border-radius: 2px; }
</style>"""


def facts(timeline: Timeline, *, state: str, ranks: int) -> list[tuple[str, str]]:
    """Names and values of the state line; an en dash where there is nothing to say yet."""
    branches = len(timeline.branches)
    timeline = timeline.lineage()
    began = timeline.last(TaskBegan)
    arrived = len(timeline.tasks())
    recent = timeline.latest(Steps, RECENT)
    steps = sum(record.count for record in recent)
    seconds = sum(record.seconds for record in recent)
    moving = state == "running" and seconds > 0

    def share(part: float) -> str:
        return f"{part / seconds:.0%}" if seconds > 0 else "–"  # noqa: RUF001

    gaps = list(timeline.stability_gaps().values())
    branch = [("branch", str(timeline.branches[-1]))] if branches > 1 else []
    return [
        ("task", f"{began.task + 1} of {arrived}" if began else f"0 of {arrived}"),
        *([] if state in OVER else [("backlog", backlog(timeline).words)]),
        *branch,
        ("step", str(recent[-1].first + recent[-1].count) if recent else "0"),
        ("steps/s", f"{steps / seconds:.1f}" if moving else "–"),  # noqa: RUF001
        ("samples stored", str(recent[-1].stored) if recent else "0"),
        *([("stability gap", f"{gaps[-1]:.2f}")] if gaps else []),
        ("ranks", str(ranks)),
        ("waited for samples", share(sum(record.waited for record in recent))),
        ("hidden", share(sum(record.hidden for record in recent))),
    ]


def banner(timeline: Timeline, *, state: str, take_over: str = "") -> str:
    """What somebody should know now, as HTML; empty while all is well.

    take_over: how to steer from here, where another kernel does; empty where this one steers.
    """
    lines = [_alarm(words) for words in _alarms(timeline, state)]
    if take_over:
        lines.append(
            "<div class='rk-banner'>You are watching: another kernel steers this run. To take over: "
            f"<code>{escape(take_over)}</code></div>"
        )
    return f"{_CSS}{''.join(lines)}" if lines else ""


def _alarms(timeline: Timeline, state: str) -> list[str]:
    alarms = []
    ended, stalled, over = timeline.last(GenerationEnded), timeline.last(Stalled), timeline.last(RunOver)
    if state == INTERRUPTED:
        words = over.error if over else "the cluster ended; rk.resume(...) goes on"
        if over and over.moves_to:
            words = f"job {over.moves_to}, which was to go on with the run, did not: session.error says why"
        alarms.append(f"interrupted: {words}")
    if state == "moving":
        job = f"job {over.moves_to}" if over else "the next job"
        alarms.append(f"moving to {job}, whose turn has not come: `rehearsal-kit jobs` shows where it waits")
    if state in UNDER_WAY and (fewer := _fewer(timeline)):
        alarms.append(fewer)
    if state == "recovering":
        alarms.append(f"recovering: {ended.reason if ended else 'the ranks are being started again'}")
    newest = timeline.newest((Stalled, GenerationBegan, GenerationEnded, StateChanged))
    if stalled is not None and newest is stalled and stalled.seconds > 0 and state not in OVER:
        alarms.append(f"stalled: rank {stalled.rank}, {stalled.seconds:.0f} s without progress")
    if state == "running" and (slow := straggler(timeline)) is not None:
        alarms.append(f"rank {slow[0]} computes {slow[1]:.1f} times as long as the others; all wait for it")
    newest = timeline.newest((CheckpointKept, CheckpointFailed))
    if isinstance(newest, CheckpointFailed):
        alarms.append(f"checkpoint {newest.checkpoint} could not be written or used: {newest.reason}")
    now = {record.what: record.reason for record in timeline.records(NotKept)}
    alarms += [f"{what} cannot be kept, the run goes on: {why}" for what, why in now.items() if why]
    return alarms


def _fewer(timeline: Timeline) -> str:
    """What is said while a run goes on with fewer workers than it was started with; else empty."""
    generations = reversed(timeline.records(GenerationBegan))
    fewer = [*itertools.takewhile(lambda began: len(began.workers) < began.of, generations)]
    if not fewer:
        return ""
    since = time.strftime("%H:%M", time.localtime(fewer[-1].time))
    there = f"goes on with {len(fewer[0].workers)} of {fewer[0].of} workers since {since}"
    return f"{there}; what comes back is taken at the next end of a task"


def straggler(timeline: Timeline) -> tuple[int, float] | None:
    """The rank that has held up the others lately, and how many times as long as they it computes.

    None while none takes SLOW times as long, or not for LATELY steps yet.
    """
    recent = timeline.latest(Steps, RECENT)
    ranks = {len(record.busy) for record in recent}
    if len(ranks) != 1 or ranks <= {0, 1} or sum(record.count for record in recent) < LATELY:
        return None
    busy = [sum(seconds) for seconds in zip(*(record.busy for record in recent), strict=True)]
    slowest = busy.index(max(busy))
    others = statistics.median([seconds for rank, seconds in enumerate(busy) if rank != slowest])
    return (slowest, busy[slowest] / others) if others and busy[slowest] > SLOW * others else None


def _alarm(words: str) -> str:
    return f"<div class='rk-banner rk-alarm' role='alert'>{escape(words[:REASON_LENGTH])}</div>"


def tasks_html(timeline: Timeline) -> str:
    """What became of each task, its colour in the curves, and how much of it is forgotten.

    Of a long stream those around the one that was begun last; the others are counted.
    """
    timeline = timeline.lineage()
    tasks, aside, unevaluated = timeline.tasks(), timeline.set_aside(), left_open(timeline, "watched")
    began = timeline.last(TaskBegan)
    begun = {record.task for record in timeline.latest(TaskBegan, SHOWN)}
    ended = {record.task for record in timeline.latest(TaskEnded, SHOWN)}
    now = began.task if began is not None else -1
    numbers = [*tasks]
    first, last = max(0, bisect_right(numbers, now) - SHOWN), bisect_right(numbers, now) + SHOWN
    gaps = timeline.stability_gaps()
    rows = [_more(f"{first} earlier tasks: see session.table()")] if first else []
    for task in numbers[first:last]:
        if task in aside:
            rows.append(_aside(aside[task], f"{task} "))
            continue
        state = "trained" if task in ended else "training" if task in begun else "arrived"
        errors = timeline.scores(lambda scores, task=task: scores.errors("watched", task))  # type: ignore[misc]
        gap = (f"{gaps[task]:.2f}" if task in gaps else "") if gaps else None
        rows.append(_row(tasks[task], state, errors, gap=gap))
        if task in unevaluated:
            rows.append(_reason(f"cannot be evaluated any more: {unevaluated[task]}"))
    rows += [_more(f"{len(numbers) - last} more wait")] if len(numbers) > last else []
    rows += _without_number(timeline)
    right = "<th class='rk-right'>"
    head = f"<th>task</th><th>state</th>{right}error</th>{right}change</th>"
    head += f"{right}gap</th>" if gaps else ""
    body = "".join(rows) or "<tr><td colspan='5'>no task has arrived yet</td></tr>"
    note = "error: on the watched samples, now; change: since the task was learned"
    note += "; gap: largest error of earlier tasks in its first steps, relative to before" if gaps else ""
    shown = f"<table class='rk-tasks'><tr>{head}</tr>{body}</table>"
    return f"{_CSS}{shown}<p class='rk-note'>{note}</p>"


def _without_number(timeline: Timeline) -> list[str]:
    """What was set aside before it became a task, the newest."""
    numbered = {id(record) for record in timeline.set_aside().values()}
    others = [each for each in timeline.records(TaskSetAside) if id(each) not in numbered]
    more = [_more(f"{len(others) - SHOWN} more were set aside before")] if len(others) > SHOWN else []
    return [*more, *(_aside(each) for each in others[-SHOWN:])]


def _more(words: str) -> str:
    return f"<tr><td class='rk-task' colspan='5'>{words}</td></tr>"


def _row(record: TaskArrived, state: str, errors: dict[int, float], *, gap: str | None) -> str:
    """One line; gap: the stability gap, empty where it is not known, None where nobody looked at any."""
    learned, now = errors.get(record.task), next(reversed(errors.values()), None)
    change = f"{now / learned - 1:+.0%}" if learned and now is not None and len(errors) > 1 else ""
    swatch = f"<span class='rk-swatch' style='background:{task_colour(record.task)}'></span>"
    looked = "" if gap is None else f"<td class='rk-right'>{gap}</td>"
    about = (
        f"{record.training} training, {record.watched} watched, {record.test} test, {record.skipped} skipped"
    )
    return (
        f"<tr title='{escape(about)}'><td class='rk-task'>{swatch}{record.task} {escape(record.name)}</td>"
        f"<td>{state}</td><td class='rk-right'>{'' if now is None else f'{now:.4f}'}</td>"
        f"<td class='rk-right'>{change}</td>"
        f"{looked}</tr>"
    )


def _aside(record: TaskSetAside, number: str = "") -> str:
    return (
        f"<tr title='{escape(record.path)}'><td class='rk-task'>{number}{escape(record.name)}</td>"
        f"<td>set aside</td></tr>{_reason(record.reason)}"
    )


def _reason(words: str) -> str:
    return f"<tr><td class='rk-reason' colspan='5'>{escape(words)}</td></tr>"
