"""A figure widget that a page knows from the first message on as it is."""

from __future__ import annotations

import plotly.graph_objects as go


class WholeFigure(go.FigureWidget):  # type: ignore[misc] # plotly has no types
    """Told to the page once it is whole.

    Plotly's own tells of itself first and of its traces in the next message, which a page that has drawn it
    meanwhile ignores: on a busy machine its plot then stays empty, whatever is sent later.
    """

    _is_whole = False

    def __init__(self, figure: go.Figure) -> None:
        super().__init__(figure)
        self._is_whole = True
        self.open()

    def open(self) -> None:
        """Tell the page of it; called by ipywidgets before there is anything to tell of."""
        if self._is_whole:
            super().open()
