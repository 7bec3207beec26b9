"""Buttons: how they look, when they may be pressed, and those that ask again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

CONFIRM_S = 5.0
"""How long a press waits for its confirmation."""
DOUBLE_CLICK_S = 0.4
"""Two clicks closer than this are one: a double click confirms nothing."""
STEERABLE = ("waiting", "running", "paused")
WATCHES = "another kernel steers this run"

CSS = """<style>
.rk-press.mod-active { box-shadow: none; background-color: var(--jp-layout-color2); }
.rk-press.mod-danger, .rk-press.mod-danger.mod-active { background-color: #c0262d; color: #fff; }
.rk-panel .jupyter-widget-Collapse-header { padding: 3px 10px; font-weight: 400; }
.rk-panel .jupyter-widget-Collapse-contents { padding: 6px 10px; }
.rk-said { font-size: 12px; line-height: 1.5; }
.rk-said .rk-refused { color: var(--jp-error-color1, #c0262d); font-weight: 600; }
</style>"""


class Confirmed:
    """A press that is meant only once it was made a second time, within some seconds, for the same thing."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._armed_at = -math.inf
        self._for: object = None

    @property
    def armed(self) -> bool:
        """Whether the next press is the confirmation."""
        return self._clock() - self._armed_at <= CONFIRM_S

    def pressed(self, what: object = None) -> bool:
        """Whether this press confirms an earlier one; what: that it is about."""
        since = self._clock() - self._armed_at
        if since < DOUBLE_CLICK_S:
            return False
        if since <= CONFIRM_S and what == self._for:
            self.forget()
            return True
        self._armed_at, self._for = self._clock(), what
        return False

    def forget(self) -> None:
        """Ask anew."""
        self._armed_at = -math.inf


def allow(widget: Any, why_not: str, *, tooltip: str) -> None:
    """Let a widget be used, or say why it cannot be."""
    widget.disabled = bool(why_not)
    widget.tooltip = why_not or tooltip


def why_not(state: str, *, leads: bool, allowed: tuple[str, ...] = STEERABLE) -> str:
    """Why a gesture is not possible now; empty where it is."""
    if not leads:
        return WATCHES
    return "" if state in allowed else f"not while the run is {state}"


def press(description: str, icon: str, *, width: str = "96px") -> Any:
    """A button whose every change of value is one press."""
    # A ToggleButton, not a Button: once it has been pressed, ipykernel 7.4 answers it on another thread even
    # while a cell blocks the main one; a Button never. Its value means nothing.
    button = widgets.ToggleButton(description=description, icon=icon, layout={"width": width})
    button.add_class("rk-press")
    return button


def row(children: list[Any]) -> Any:
    """Widgets beside each other, in more lines where the page is narrow."""
    layout = {"align_items": "center", "flex_flow": "row wrap", "grid_gap": "2px 4px"}
    return widgets.HBox(children, layout=layout)


def offer(menu: Any, options: list[tuple[str, int]]) -> None:
    """Give a menu these options and keep what was chosen, as long as it is among them."""
    if tuple(options) == tuple(menu.options):
        return
    chosen = menu.value
    with menu.hold_sync():
        menu.options = options
        if chosen in [value for _, value in options]:
            menu.value = chosen
