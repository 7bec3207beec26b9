"""A report of several runs on the same stream: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.record.preview_files import Image, read_previews
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import Steps, TaskEnded
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.cost_figures import Costs, front_figure, tradeoff_figure
from rehearsal_kit.reports.figures import (
    CONFIG,
    age_figure,
    bars_figure,
    loss_figure,
    matrix_figure,
    terms_figure,
    watched_figure,
)
from rehearsal_kit.reports.pictures import Scale, field_scale, input_tile, png_uri, shrink

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
.made { min-width: 0; align-self: center; } .words td { border: 0; text-align: left; }
.words td:first-child { color: var(--soft); white-space: nowrap; }
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
    """Name of the run as readers know it: "ER", "Incremental", "FromScratch"."""
    timeline: Timeline
    previews: Path | None
    """The folder in which the run keeps previews; None if it kept none."""


@dataclass(frozen=True)
class _Made:
    """What a network made of the sample at one time."""

    images: Mapping[str, Image]
    """Images by field."""
    words: str


@dataclass(frozen=True)
class _Pictures:
    """What one run's previews say about one task."""

    name: str
    """Name of the field that goes into the network."""
    input: Image
    truth: Mapping[str, Image]
    """True images by field; none where only classes are predicted."""
    after: Mapping[int, _Made]
    """What the network made, by the task after which it was made, in order."""


_Kept = Mapping[str, Mapping[int, _Pictures]]
"""Pictures by name of the run and by task."""


def write_report(
    path: str | Path,
    runs: Sequence[ReportedRun],
    *,
    title: str,
    table_html: str,
    costs: Costs | None = None,
) -> None:
    """Write a self-contained HTML report that compares runs on the same stream of tasks.

    `table_html` is the table of results, already escaped by the caller; every other text is escaped here.
    `costs` may be of more strategies and seeds than `runs`, which are shown one by one.
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
        *_about_costs(costs or Costs({}, {})),
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
        *_about_terms(timelines),
    ]
    Path(path).write_text(_document(title, "\n".join(body)), encoding="utf-8")


def _about_costs(costs: Costs) -> list[str]:
    sections = []
    if costs.front:
        words = (
            "How much of the gap between Incremental and FromScratch is closed, against the samples that go "
            "through the network. Above: better; to the left: cheaper."
        )
        of_names = {escape(name): values for name, values in costs.front.items()}
        sections.append(_section("Gap closed against rows computed", words, front_figure(of_names)))
    if costs.points:
        words = "Means over the seeds with their standard deviation. Below: better; to the left: quicker."
        escaped = {escape(name): values for name, values in costs.points.items()}
        sections.append(_section("What it costs and what it brings", words, tradeoff_figure(escaped)))
    return sections


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
    arrived = [task for run in runs for task in run.timeline.lineage().tasks().values()]
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
    for run in runs:
        if len(run.timeline.branches) > 1:
            newest = run.timeline.branches[-1]
            lines.append(
                f'<p class="note">{escape(run.name)} was rolled back: all but the dashed losses is of branch '
                f"{newest}.</p>"
            )
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


def _about_terms(timelines: Mapping[str, Timeline]) -> list[str]:
    """What a loss of several terms adds to the report; nothing where no run has one."""
    steps = {name: timeline.lineage().records(Steps) for name, timeline in timelines.items()}
    several = {name: t for name, t in timelines.items() if len({n for r in steps[name] for n in r.terms}) > 1}
    sections = []
    if several:
        words = "Weight included: the loss is their sum. A line begins where its term is above zero."
        sections.append(_section("Terms of the loss", words, terms_figure(several)))
    if any(record.outputs_age is not None for records in steps.values() for record in records):
        words = "Steps since the stored outputs were made that a step is compared with, on average."
        sections.append(_section("Age of stored outputs", words, age_figure(timelines)))
    return sections


def _pictures_html(runs: Sequence[ReportedRun]) -> str:
    kept = {run.name: _kept(run) for run in runs if run.previews is not None}
    tasks = sorted({task for pictures in kept.values() for task in pictures})
    if not tasks:
        return "<h2>Pictures</h2><p class='soft'>These runs kept no pictures.</p>"
    names = {n: task.name for run in runs for n, task in run.timeline.lineage().tasks().items()}
    blocks = ["<h2>One held-out sample of every task, at the end of the run</h2>"]
    shown = [pictures for of_run in kept.values() for pictures in of_run.values()]
    if any(pictures.truth for pictures in shown):
        words = "Truth and predictions of a row share one grey or colour scale."
        blocks.append(f'<p class="soft">{words}</p>')
    if any(made.words for pictures in shown for made in pictures.after.values()):
        words = "Classes by their numbers, the likeliest first, with the probability that the network gives."
        blocks.append(f'<p class="soft">{words}</p>')
    for task in tasks:
        blocks.append(f"<h3>Task {task}: {escape(names.get(task, ''))}</h3>{_task_html(kept, task)}")
    blocks.append(
        f"<h2>Task {tasks[0]}: right after it was learned, and at the end</h2>"
        f"{_forgetting_html(kept, tasks[0])}"
    )
    return "\n".join(blocks)


def _task_html(kept: _Kept, task: int) -> str:
    """The input of a task and what every run made of it at its end."""
    made = {
        name: [*pictures[task].after.values()][-1]
        for name, pictures in kept.items()
        if task in pictures and pictures[task].after
    }
    return _beside_input(_first(kept, task), made)


def _forgetting_html(kept: _Kept, task: int) -> str:
    """What every run made of a task when it had just been learned, and at the end."""
    made = {}
    for name, pictures in kept.items():
        after = pictures[task].after if task in pictures else {}
        for number in sorted({min(after), max(after)}) if after else ():
            made[f"{name}, after task {number}"] = after[number]
    first = _first(kept, task)
    return _grid(first.truth, made) + _words_table(made) if first.truth else _beside_input(first, made)


def _first(kept: _Kept, task: int) -> _Pictures:
    """Input and truth of a task are the same in all runs."""
    return next(pictures[task] for pictures in kept.values() if task in pictures)


def _beside_input(pictures: _Pictures, made: Mapping[str, _Made]) -> str:
    tile = input_tile(pictures.name, pictures.input)
    image = _img(tile.image, tile.scale, pictures.name)
    grid = _grid(pictures.truth, made) if pictures.truth else ""
    return (
        f'<div class="beside"><figure><figcaption>{escape(tile.caption)}</figcaption>{image}</figure>'
        f'<div class="made">{grid}{_words_table(made)}</div></div>'
    )


def _words_table(made: Mapping[str, _Made]) -> str:
    """A row for everything that says something; empty where no classes are predicted."""
    said = {name: each.words for name, each in made.items() if each.words}
    rows = "".join(f"<tr><td>{escape(n)}</td><td>{escape(words)}</td></tr>" for n, words in said.items())
    return f'<table class="words">{rows}</table>' if rows else ""


def _grid(truth: Mapping[str, Image], made: Mapping[str, _Made]) -> str:
    """A row per field, the truth and everything that was made of it beside each other."""
    columns = {"truth": truth, **{name: each.images for name, each in made.items()}}
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = ""
    for field, image in truth.items():
        word, scale = "phase / rad" if field == "phase" else field, field_scale(field, image)
        cells = "".join(f"<td>{_img(c[field], scale, f'{word}, {n}')}</td>" for n, c in columns.items())
        rows += f"<tr><td>{escape(word)}<br>{scale.low:.2f} to {scale.high:.2f}</td>{cells}</tr>"
    return f'<div class="wide"><table class="pictures"><tr><th></th>{head}</tr>{rows}</table></div>'


def _img(image: Image, scale: Scale, words: str) -> str:
    return f'<img alt="{escape(words)}" src="{png_uri(shrink(image, SIDE), scale)}">'


def _kept(run: ReportedRun) -> Mapping[int, _Pictures]:
    """The pictures of a run; of one that was rolled back, those of its newest branch only."""
    assert run.previews is not None  # noqa: S101 - for the type checker; the caller has looked
    pictures = _read(run.previews)
    if len(run.timeline.branches) == 1:
        return pictures
    ended = {record.task for record in run.timeline.lineage().records(TaskEnded)}
    return {
        task: replace(each, after={after: made for after, made in each.after.items() if after in ended})
        for task, each in pictures.items()
        if task in ended
    }


def _read(folder: Path) -> dict[int, _Pictures]:
    """All pictures that a run has kept, by task."""
    found: dict[int, _Pictures] = {}
    for after, preview in sorted(read_previews(folder), key=lambda each: each[0]):
        made = {after: _Made(preview.predicted, preview.words)}
        before = found.get(preview.task)
        found[preview.task] = _Pictures(
            name=preview.name,
            input=preview.input,
            truth=preview.truth,
            after=made if before is None else {**before.after, **made},
        )
    return dict(sorted(found.items()))
