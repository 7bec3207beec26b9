"""Figures of what strategies cost and what they bring, one point for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rehearsal_kit.reports.figures import cycle, in_report

Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Training times relative to Incremental's, and final errors, by strategy, seed by seed."""
Front = Mapping[str, tuple[float, float, float]]
"""Rows computed relative to Incremental's, part of the gap that was closed, its spread; by strategy."""


@dataclass(frozen=True)
class Costs:
    """What strategies cost, and what they bring."""

    points: Points
    front: Front


def tradeoff_figure(points: Points) -> go.Figure:
    """Final error against training time, both over seeds, one point with its spread per strategy.

    points: by name, the training times relative to Incremental's and the final errors, seed by seed. What is
    wanted lies in the lower left corner.
    """
    figure = go.Figure()
    for colour, (name, (times, errors)) in zip(cycle(len(points)), points.items(), strict=True):
        figure.add_trace(
            go.Scatter(
                x=[np.mean(times)], y=[np.mean(errors)], name=name, text=[name], mode="markers+text",
                textposition="top center", marker={"color": colour, "size": 11},
                error_x={"array": [_deviation(times)], "color": colour, "thickness": 1},
                error_y={"array": [_deviation(errors)], "color": colour, "thickness": 1},
                hovertemplate=f"{name}: error %{{y:.4f}}, %{{x:.2f}} x Incremental<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(title_text="training time, relative to Incremental", rangemode="tozero")
    figure.update_yaxes(title_text="final error", rangemode="tozero")
    figure.update_layout(height=420, showlegend=False)
    return in_report(figure)


def front_figure(front: Front) -> go.Figure:
    """Gap closed against rows computed, one point with its spread per strategy, and the front of the best.

    front: by name, the rows computed relative to Incremental's, the part of the gap between Incremental and
    FromScratch that was closed, and the spread of that over seeds. What is wanted lies in the upper left
    corner; the line joins what nothing closes more of the gap than at as few rows.
    """
    figure = go.Figure()
    best, edge = -np.inf, []
    for rows, closed, _ in sorted(front.values()):
        if closed > best:
            best = closed
            edge.append((rows, closed))
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in edge], y=[y for _, y in edge], mode="lines", hoverinfo="skip",
            line={"color": "#8c8c8c", "width": 1, "dash": "dot", "shape": "hv"},
        )
    )  # fmt: skip
    for colour, (name, (rows, closed, spread)) in zip(cycle(len(front)), front.items(), strict=True):
        figure.add_trace(
            go.Scatter(
                x=[rows], y=[closed], name=name, text=[name], mode="markers+text",
                textposition="top center", marker={"color": colour, "size": 11},
                error_y={"array": [spread], "color": colour, "thickness": 1},
                hovertemplate=f"{name}: %{{y:.3f}} of the gap at %{{x:.3f}} x rows<extra></extra>",
            )
        )  # fmt: skip
    figure.add_hline(y=1, line={"width": 1, "dash": "dash"})
    figure.update_xaxes(title_text="rows computed, relative to Incremental")
    figure.update_yaxes(title_text="gap closed (1: as training from scratch)")
    figure.update_layout(height=420, showlegend=False)
    return in_report(figure)


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
