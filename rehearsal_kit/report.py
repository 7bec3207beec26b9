"""A report of several runs on the same stream: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

import h5py
import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rehearsal_kit.errors import SettingsError
from rehearsal_kit.preview import Image
from rehearsal_kit.telemetry import Joined, TaskArrived, TaskEnded
from rehearsal_kit.timeline import Timeline
from rehearsal_kit.widgets.figures import (
    CONFIG,
    bars_figure,
    loss_figure,
    matrix_figure,
    watched_figure,
)
from rehearsal_kit.widgets.images import (
    Scale,
    amplitude_scale,
    diffraction_picture,
    phase_scale,
    png_uri,
    shrink,
)

SIDE = 96
"""Longest edge of a picture in the file; the file stays small with many tasks."""

# Nothing may be fetched or sent, whatever the texts in the runs say.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_STYLE = """
:root { color-scheme: light dark;
  --ink: #222; --soft: #5c6470; --line: #d9dde3; --paper: #fff; --band: #fff4d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dcdfe4; --soft: #9aa3af; --line: #3a3f47; --paper: #16181c; --band: #3d3310; } }
body { margin: 0 auto; max-width: 1180px; padding: 28px 32px 60px;
  background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 27px; margin: 0 0 6px; } h2 { font-size: 19px; margin: 40px 0 4px; }
p { margin: 4px 0 12px; max-width: 85ch; } .soft { color: var(--soft); }
.note { background: var(--band); padding: 9px 14px; border-radius: 6px; max-width: none; }
table { border-collapse: collapse; margin: 12px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom-width: 2px; }
.wide { overflow-x: auto; }
.pictures th, .pictures td { border: 0; padding: 3px 7px; text-align: center;
  font-weight: 400; font-size: 13px; }
.pictures td:first-child { color: var(--soft); white-space: nowrap; }
.beside { display: flex; gap: 10px; } figure { margin: 15px 0; }
figcaption { font-size: 13px; padding-bottom: 4px; text-align: center; }
img { width: 128px; aspect-ratio: 1; image-rendering: pixelated; display: block;
  box-shadow: 0 0 0 1px var(--line); }
h3 { font-size: 15px; margin: 22px 0 0; }
"""
_THEME = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.querySelectorAll(".js-plotly-plot").forEach((plot) =>
  Plotly.relayout(plot, { "font.color": dark.matches ? "#dcdfe4" : "#222222" }));
dark.addEventListener("change", dress);
addEventListener("load", dress);
"""


@dataclass(frozen=True)
class ReportedRun:
    """One column of the comparison."""

    name: str
    """As readers know it: "ER", "Incremental", "FromScratch"."""
    timeline: Timeline
    previews: Path | None
    """The previews.h5 of the run; None if it kept no pictures."""


@dataclass(frozen=True)
class _Pictures:
    """What one run's previews say about one task."""

    diffraction: Image
    amplitude: Image
    phase: Image
    after: Mapping[int, tuple[Image, Image]]
    """Predicted amplitude and phase by the task after which they were made, in order."""


def write_report(path: str | Path, runs: Sequence[ReportedRun], *, title: str, table_html: str) -> None:
    """Write a self-contained HTML report that compares runs on the same stream of tasks.

    `table_html` is the table of results, already escaped by the caller; every other text is escaped here.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) != len(names):
        raise SettingsError(
            f"runs of a report are named {names!r}; there must be one at least, no name twice."
        )
    timelines = {escape(run.name): run.timeline for run in runs}
    body = [
        _header(runs, title),
        f'<h2>Results</h2><div class="wide">{table_html}</div>',
        _section(
            "What is kept and what is forgotten",
            "Test error on every task (column) after every task (row): darker is better. "
            "Read down a column to see a task being forgotten.",
            matrix_figure(timelines),
        ),
        _section("Means", "Over all tasks, after the last one; and what it took.", bars_figure(timelines)),
        _pictures_html(runs),
        _section(
            "Watched error while it ran",
            "Every line is a task; each evaluation is a point.",
            watched_figure(timelines),
        ),
        _section("Loss", "Of the mini-batches trained on, representatives included.", loss_figure(timelines)),
    ]
    Path(path).write_text(_document(title, "\n".join(body)), encoding="utf-8")


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>\n{body}\n<script>{_THEME}</script></body></html>\n"
    )


def _header(runs: Sequence[ReportedRun], title: str) -> str:
    joined = [record for run in runs for record in run.timeline.records(Joined)]
    arrived = [record for run in runs for record in run.timeline.records(TaskArrived)]
    times = [r.time for r in joined] + [r.time for run in runs for r in run.timeline.records(TaskEnded)]
    when = " to ".join(_clock(time) for time in sorted({min(times), max(times)})) if times else "not known"
    found = sorted({f"{record.ranks} ranks on {record.device}" for record in joined})
    machines = ", ".join(found) or "ranks and devices not recorded"
    tasks = len({record.task for record in arrived})
    strategies = ", ".join(run.name for run in runs)
    lines = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(strategies)} on a stream of {tasks} tasks &nbsp;·&nbsp; {escape(when)}<br>'
        f"{escape(machines)} &nbsp;·&nbsp; written on {escape(platform.platform())}, "
        f"Python {platform.python_version()}</p>",
    ]
    if simulated := sorted({record.name for record in arrived if record.simulated}):
        lines.append(
            '<p class="note"><b>Simulated counts.</b> The diffraction counts of these scans were '
            f"computed from an object and a probe, not measured: {escape(', '.join(simulated))}. "
            "Errors on measured counts may be larger.</p>"
        )
    return "\n".join(lines)


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _section(title: str, words: str, figure: go.Figure) -> str:
    plot = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)
    return f'<h2>{title}</h2><p class="soft">{words}</p>{plot}'


def _pictures_html(runs: Sequence[ReportedRun]) -> str:
    kept = {run.name: _read(run.previews) for run in runs if run.previews is not None}
    tasks = sorted({task for pictures in kept.values() for task in pictures})
    if not tasks:
        return "<h2>Pictures</h2><p class='soft'>These runs kept no pictures.</p>"
    names = {r.task: r.name for run in runs for r in run.timeline.records(TaskArrived)}
    blocks = [
        "<h2>One held-out pattern of every task, at the end of the run</h2>",
        '<p class="soft">Truth and predictions of a row share one grey or colour scale.</p>',
    ]
    for task in tasks:
        blocks.append(f"<h3>Task {task}: {escape(names.get(task, ''))}</h3>{_task_table(kept, task)}")
    blocks.append(
        f"<h2>Task {tasks[0]}: right after it was learned, and at the end</h2>"
        f"{_forgetting_table(kept, tasks[0])}"
    )
    return "\n".join(blocks)


def _task_table(kept: Mapping[str, Mapping[int, _Pictures]], task: int) -> str:
    truth = next(pictures[task] for pictures in kept.values() if task in pictures)
    columns = {"truth": (truth.amplitude, truth.phase)}
    for name, pictures in kept.items():
        if task in pictures and pictures[task].after:
            columns[name] = [*pictures[task].after.values()][-1]
    pattern = _img(*diffraction_picture(truth.diffraction), "diffraction")
    return (
        f'<div class="beside"><figure><figcaption>diffraction (log10)</figcaption>{pattern}</figure>'
        f"{_grid(truth, columns)}</div>"
    )


def _forgetting_table(kept: Mapping[str, Mapping[int, _Pictures]], task: int) -> str:
    truth = next(pictures[task] for pictures in kept.values() if task in pictures)
    columns = {"truth": (truth.amplitude, truth.phase)}
    for name, pictures in kept.items():
        after = pictures[task].after if task in pictures else {}
        for number in sorted({min(after), max(after)}) if after else ():
            columns[f"{name}, after task {number}"] = after[number]
    return _grid(truth, columns)


def _grid(truth: _Pictures, columns: Mapping[str, tuple[Image, Image]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = ""
    scales = {"amplitude": amplitude_scale(truth.amplitude), "phase / rad": phase_scale(truth.phase)}
    for number, (word, scale) in enumerate(scales.items()):
        cells = "".join(f"<td>{_img(c[number], scale, f'{word}, {n}')}</td>" for n, c in columns.items())
        rows += f"<tr><td>{word}<br>{scale.low:.2f} to {scale.high:.2f}</td>{cells}</tr>"
    return f'<div class="wide"><table class="pictures"><tr><th></th>{head}</tr>{rows}</table></div>'


def _img(image: Image, scale: Scale, words: str) -> str:
    return f'<img alt="{escape(words)}" src="{png_uri(shrink(image, SIDE), scale)}">'


def _read(path: Path) -> dict[int, _Pictures]:
    """All pictures of a previews.h5, by task."""
    with h5py.File(path, "r") as file:
        return {_number(name): _read_task(group) for name, group in file.items() if name.startswith("task_")}


def _read_task(group: h5py.Group) -> _Pictures:
    predictions = {
        _number(name): (_image(made, "predicted_amplitude"), _image(made, "predicted_phase"))
        for name, made in group.items()
        if name.startswith("after_")
    }
    return _Pictures(
        diffraction=_image(group, "diffraction"),
        amplitude=_image(group, "amplitude"),
        phase=_image(group, "phase"),
        after=dict(sorted(predictions.items())),
    )


def _image(group: h5py.Group, name: str) -> Image:
    return np.asarray(group[name], np.float32)


def _number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])
