"""Plotly figures as pure functions of timelines: the live one of the panel and those of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from rehearsal_kit.record.records import Steps
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.decimation import APART, decimate, kept_points, lines_of
from rehearsal_kit.reports.measures import final_error

# Okabe and Ito's colours without black and yellow, and two more: told apart with the common
# deficiencies of colour vision, and seen on white and on black.
PALETTE = ("#3389c2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9a8f2e", "#8c8c8c")
CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
"""No upload button and no vendor's logo in the tool bar."""
MAPS = 3
"""Matrices side by side."""
OTHERS = 6
"""Branches that were left and are still shown."""
POINTS = 800
"""Points of the loss curve that leave the kernel."""
TICKS = [digit * 10.0**power for power in range(-8, 9) for digit in (1, 2, 5)]
"""Ticks of a logarithmic axis: plotly writes the 2 and the 5 without their power."""

_CLEAR = "rgba(0,0,0,0)"
_Values = NDArray[np.float64]
_Points = tuple[_Values, _Values]


@dataclass(frozen=True)
class Curve:
    """The tasks that share one colour, one after the other with a gap (NaN) between them."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]
    task: NDArray[np.floating]

    def shows_the_same(self, other: Curve) -> bool:
        """Whether a plot of the other would look like this one."""
        pairs = ((self.x, other.x), (self.y, other.y), (self.task, other.task))
        return all(np.array_equal(one, another, equal_nan=True) for one, another in pairs)


def task_colour(task: int) -> str:
    """Colour of a task in every curve and list; they repeat after eight tasks."""
    return PALETTE[task % len(PALETTE)]


def loss_curves(timeline: Timeline, *, most: int = POINTS) -> list[Curve]:
    """Loss against step, a curve for each colour of the palette, decimated to about `most` points.

    Of more than APART tasks the older ones share lines, so that no line becomes a dot.
    """
    told = timeline.lineage().records(Steps)
    steps, losses, tasks = _points_of(told)
    order = np.argsort(tasks, kind="stable")
    return _by_colour(Curve(steps[order], losses[order], tasks[order]), most)


def watched_curves(timeline: Timeline, *, most: int = 2 * POINTS) -> list[Curve]:
    """Error on the watched samples against step, of the first task and the newest, APART in all."""
    shown = timeline.lineage().scores(lambda scores: scores.watched(APART))
    steps, errors, tasks = ([], [], [])
    for task, (at, values) in shown.items():
        steps += at
        errors += values
        tasks += [task] * len(at)
    return _by_colour(Curve(*(np.array(values, np.float64) for values in (steps, errors, tasks))), most)


def left_curves(timeline: Timeline, *, most: int = POINTS // 4) -> dict[int, Curve]:
    """Loss against step of what was rolled back, by number of branch; the newest few branches only."""
    left = {branch: each for branch, each in timeline.left_behind().items() if each.latest(Steps, 1)}
    return {branch: _left_curve(left[branch], most) for branch in sorted(left)[-OTHERS:]}


@dataclass(frozen=True)
class _Row:
    """A row of the live figure: curves against step, one for each colour of the palette."""

    curves: Callable[[Timeline], list[Curve]]
    mode: str
    y_axis: Mapping[str, object]


LIVE_ROWS = (
    _Row(loss_curves, "lines", {"title_text": "loss", "type": "log", "tickvals": TICKS, "tickformat": "~g"}),
    _Row(watched_curves, "lines+markers", {"title_text": "watched error", "rangemode": "tozero"}),
)
"""The rows, from above; that of the losses also has what was rolled back."""


def live_curves(timeline: Timeline) -> list[Curve]:
    """The curves of all rows, in the order of the traces of `live_figure`."""
    return [curve for row in LIVE_ROWS for curve in row.curves(timeline)]


def live_figure(others: Sequence[int] = ()) -> go.Figure:
    """The empty figure of the panel with its full layout; others: branches that were left.

    It always has a trace for each row and colour and one for each of the others, in this order, so that a
    page that comes back later finds the traces that a push will fill.
    """
    figure = make_subplots(rows=len(LIVE_ROWS), cols=1, shared_xaxes=True, vertical_spacing=0.07)
    empty = Curve(*[np.zeros(0, np.float32)] * 3)
    for number, row in enumerate(LIVE_ROWS, start=1):
        for colour in PALETTE:
            figure.add_trace(_trace(empty, colour, row.mode), row=number, col=1)
        figure.update_yaxes(row.y_axis, row=number, col=1)
    for branch in others:
        figure.add_trace(_left_trace(empty, f"branch {branch}"), row=1, col=1)
    figure.update_layout(
        height=150 * len(LIVE_ROWS),
        autosize=True,
        margin={"l": 58, "r": 14, "t": 16, "b": 40},
        uirevision="keep",
        showlegend=bool(others),
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "top", "bgcolor": _CLEAR},
    )
    figure.update_xaxes(title_text="step", row=len(LIVE_ROWS), col=1)
    figure.update_layout(look("light"))
    return figure


def look(theme: str) -> dict[str, object]:
    """Layout of a page that is "light" or "dark"; the page shines through."""
    ink, grid = ("#d0d0d0", "#454545") if theme == "dark" else ("#333333", "#e3e3e3")
    lines = {"gridcolor": grid, "zerolinecolor": grid, "linecolor": grid}
    rows = ("", *range(2, len(LIVE_ROWS) + 1))
    return {
        "template": "none",
        "font": {"color": ink, "size": 12},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "modebar": {"bgcolor": _CLEAR, "color": "#8c8c8c", "activecolor": ink},
        **{f"{letter}axis{row}": lines for letter in "xy" for row in rows},
    }


def matrix_figure(timelines: Mapping[str, Timeline]) -> go.Figure:
    """Test error on every task (column) after every task (row), a map per strategy on one colour scale."""
    rows = -(-len(timelines) // MAPS)
    columns = min(len(timelines), MAPS)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=[*timelines], horizontal_spacing=0.06,
        vertical_spacing=0.3 / rows,
    )  # fmt: skip
    for number, timeline in enumerate(timelines.values()):
        row, column = divmod(number, MAPS)
        matrix = timeline.lineage().error_matrix("test")
        names = [str(number) for number in range(len(matrix))]
        figure.add_trace(
            go.Heatmap(
                z=matrix, x=names, y=names, coloraxis="coloraxis", texttemplate="%{z:.3f}", hoverongaps=False,
                hovertemplate="after task %{y}: error %{z:.4f} on task %{x}<extra></extra>",
            ),
            row=row + 1, col=column + 1,
        )  # fmt: skip
    figure.update_xaxes(title_text="error on task", type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text="after task", col=1)
    figure.update_layout(
        coloraxis={"colorscale": "Viridis", "colorbar": {"title": "error"}}, height=380 * rows
    )
    return in_report(figure)


def watched_figure(timelines: Mapping[str, Timeline]) -> go.Figure:
    """Watched error of every task against step, a sub-plot per strategy on one axis."""
    figure = make_subplots(
        cols=len(timelines), subplot_titles=[*timelines], shared_yaxes=True, horizontal_spacing=0.03
    )
    for column, timeline in enumerate(timelines.values(), start=1):
        for colour, curve in zip(PALETTE, watched_curves(timeline), strict=True):
            figure.add_trace(_trace(curve, colour, "lines+markers"), row=1, col=column)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="watched error", col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=False, height=340)
    return in_report(figure)


def loss_figure(timelines: Mapping[str, Timeline]) -> go.Figure:
    """Loss against step, one decimated curve per strategy; faint and dashed what was rolled back."""
    figure = go.Figure()
    for colour, (name, timeline) in zip(cycle(len(timelines)), timelines.items(), strict=True):
        for branch, curve in left_curves(timeline).items():
            figure.add_trace(_left_trace(curve, f"{name}, branch {branch}", colour=colour))
        steps, losses = (np.array(values, np.float64) for values in timeline.lineage().losses())
        kept = decimate(losses, most=POINTS)
        line = {"color": colour, "width": 1.3}
        figure.add_trace(go.Scatter(x=steps[kept], y=losses[kept], name=name, mode="lines", line=line))
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="loss", type="log", tickvals=TICKS, tickformat="~g")
    figure.update_layout(height=340, showlegend=True)
    return in_report(figure)


def terms_figure(timelines: Mapping[str, Timeline]) -> go.Figure:
    """Each term of the loss, weight included, against step: a sub-plot per strategy, a colour per term."""
    figure = make_subplots(
        cols=len(timelines), subplot_titles=[*timelines], shared_yaxes=True, horizontal_spacing=0.03
    )
    curves = [_term_curves(timeline) for timeline in timelines.values()]
    names = [*dict.fromkeys(name for terms in curves for name in terms)]
    explained: set[str] = set()
    for column, terms in enumerate(curves, start=1):
        for name, (steps, values) in terms.items():
            line = {"color": task_colour(names.index(name)), "width": 1.3}
            figure.add_trace(
                go.Scatter(
                    x=steps, y=values, name=escape(name), mode="lines", line=line,
                    legendgroup=escape(name), showlegend=name not in explained,
                ),
                row=1, col=column,
            )  # fmt: skip
            explained.add(name)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="term of the loss", col=1)
    figure.update_yaxes(type="log", tickvals=TICKS, tickformat="~g")
    figure.update_layout(height=340, showlegend=True)
    return in_report(figure)


def age_figure(timelines: Mapping[str, Timeline]) -> go.Figure:
    """Age of the stored outputs that a step is compared with, in steps: one decimated curve per strategy.

    In the colours of `loss_figure`; strategies that compare no stored outputs have no curve.
    """
    figure = go.Figure()
    for colour, (name, timeline) in zip(cycle(len(timelines)), timelines.items(), strict=True):
        told = timeline.lineage().records(Steps)
        points = [(_middle(record), record.outputs_age) for record in told if record.outputs_age is not None]
        if points:
            steps, ages = _thinned(points)
            line = {"color": colour, "width": 1.3}
            figure.add_trace(go.Scatter(x=steps, y=ages, name=name, mode="lines", line=line))
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="age in steps", rangemode="tozero")
    figure.update_layout(height=340, showlegend=True)
    return in_report(figure)


def bars_figure(timelines: Mapping[str, Timeline]) -> go.Figure:
    """Mean of the final test errors and time spent training, a bar per strategy."""
    figure = make_subplots(cols=2, subplot_titles=["mean final test error", "training time in s"])
    bars = (
        [final_error(timeline.lineage().error_matrix("test")) for timeline in timelines.values()],
        [timeline.lineage().training_seconds() for timeline in timelines.values()],
    )
    for column, heights in enumerate(bars, start=1):
        figure.add_trace(
            go.Bar(
                x=[*timelines], y=heights, marker={"color": cycle(len(timelines))}, width=0.6,
                texttemplate="%{y:.3g}", textposition="outside", cliponaxis=False, showlegend=False,
            ),
            row=1, col=column,
        )  # fmt: skip
    figure.update_layout(height=320)
    return in_report(figure)


def _points_of(told: Sequence[Steps]) -> tuple[_Values, _Values, _Values]:
    """Step, loss and task of every loss in these records."""
    steps = np.fromiter(chain.from_iterable(record.at for record in told), np.float64)
    losses = np.fromiter(chain.from_iterable(record.losses for record in told), np.float64)
    lengths = [len(record.losses) for record in told]
    return steps, losses, np.repeat(np.array([record.task for record in told], np.float64), lengths)


def _by_colour(points: Curve, most: int) -> list[Curve]:
    """The points of tasks in order, a line for each, dealt to the colours."""
    if not len(points.task):
        return [Curve(*np.zeros((3, 0), np.float32)) for _ in PALETTE]
    tasks, task = np.unique(points.task, return_inverse=True)
    lines, colours = lines_of(tasks.astype(int), colours=len(PALETTE))
    kept = kept_points(points.y, lines[task], most)
    line = lines[task][kept]
    colour = colours[line]
    stacked = np.stack([points.x, points.y, points.task])[:, kept]
    curves = []
    for number in range(len(PALETTE)):
        chosen = colour == number
        mine, of_line = stacked[:, chosen], line[chosen]
        ends = np.flatnonzero(np.diff(of_line, append=-1)) + 1
        curves.append(Curve(*np.insert(mine, ends, np.nan, axis=1).astype(np.float32)))
    return curves


def _term_curves(timeline: Timeline) -> dict[str, _Points]:
    points: dict[str, list[tuple[float, float]]] = {}
    for record in timeline.lineage().records(Steps):
        for name, value in record.terms.items():
            points.setdefault(name, []).append((_middle(record), value))
    return {name: _thinned(pairs) for name, pairs in points.items()}


def _middle(record: Steps) -> float:
    """Where a mean over consecutive steps belongs."""
    return record.first + (record.count - 1) / 2


def _thinned(pairs: Sequence[tuple[float, float]]) -> _Points:
    steps, values = np.array(pairs, np.float64).T
    kept = decimate(values, most=POINTS)
    return steps[kept], values[kept]


def _trace(curve: Curve, colour: str, mode: str) -> go.Scatter:
    return go.Scatter(
        x=curve.x, y=curve.y, customdata=curve.task, mode=mode, showlegend=False,
        line={"color": colour, "width": 1.6}, marker={"size": 6},
        hovertemplate="task %{customdata}, step %{x}: %{y:.4g}<extra></extra>",
    )  # fmt: skip


def _left_trace(curve: Curve, name: str, *, colour: str = "#8c8c8c") -> go.Scatter:
    """Faint and dashed: it led nowhere, but one wants to compare."""
    return go.Scatter(
        x=curve.x, y=curve.y, customdata=curve.task, mode="lines", name=name, showlegend=True, opacity=0.7,
        line={"color": colour, "width": 1.3, "dash": "dash"},
        hovertemplate=f"{name}, task %{{customdata}}, step %{{x}}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip


def _left_curve(left: Timeline, most: int) -> Curve:
    steps, losses, tasks = _points_of(left.records(Steps))
    kept = decimate(losses, most=most)
    return Curve(*(values[kept].astype(np.float32) for values in (steps, losses, tasks)))


def cycle(count: int) -> Sequence[str]:
    """Colours for so many traces; they repeat after eight."""
    return [task_colour(number) for number in range(count)]


def in_report(figure: go.Figure) -> go.Figure:
    """The figure as a report has it, read on white and on black."""
    # A grey that is read on white and on black: a report is looked at in either.
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.4)"}
    figure.update_layout(
        template="none", paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR, font={"color": "#808080", "size": 13},
        margin={"l": 70, "r": 20, "t": 46, "b": 50}, modebar={"bgcolor": _CLEAR},
    )  # fmt: skip
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    return figure
