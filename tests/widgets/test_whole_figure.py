"""The first message about a figure has its traces: what comes later a page may ignore."""

from __future__ import annotations

import comm
import plotly.graph_objects as go
import pytest

from rehearsal_kit.reports.figures import live_figure
from rehearsal_kit.widgets.whole_figure import WholeFigure


@pytest.fixture
def opened(monkeypatch):
    """The data of every comm that is opened."""
    found, create = [], comm.create_comm

    def kept(*args, **named):
        found.append(named["data"]["state"])
        return create(*args, **named)

    monkeypatch.setattr(comm, "create_comm", kept)
    return found


def test_it_is_told_whole_and_once(opened):
    figure = WholeFigure(live_figure([1]))
    (state,) = [each for each in opened if "_widget_data" in each]
    assert len(state["_widget_data"]) == len(figure.data) > 0
    assert state["_widget_layout"]
    figure.close()


def test_plotlys_own_is_told_empty(opened):
    """Once it is not, this class is to be removed."""
    figure = go.FigureWidget(live_figure([1]))
    (state,) = [each for each in opened if "_widget_data" in each]
    assert state["_widget_data"] == []
    figure.close()
