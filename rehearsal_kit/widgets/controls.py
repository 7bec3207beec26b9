"""The steering row: every gesture is one call of the session, and what is shown is what the ranks confirmed.

A callback may run on any thread, so it asks the session for one thing and keeps the number it got.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from rehearsal_kit.errors import RehearsalKitError
from rehearsal_kit.session import Session
from rehearsal_kit.telemetry import Applied, StateChanged

CONFIRM_S = 5.0
"""How long Stop waits for its confirmation."""
DOUBLE_CLICK_S = 0.4
"""Two clicks closer than this are one: a double click on Stop confirms nothing."""
ERROR_LENGTH = 700
STEERABLE = ("waiting", "running", "paused")

_CSS = """<style>
.rk-press.mod-active { box-shadow: none; background-color: var(--jp-layout-color2); }
.rk-press.mod-danger, .rk-press.mod-danger.mod-active { background-color: #c0262d; color: #fff; }
.rk-said { font-size: 12px; line-height: 1.5; }
.rk-said .rk-refused { color: var(--jp-error-color1, #c0262d); font-weight: 600; }
</style>"""


class Controls:
    """Start, pause, stop, two sliders, and a line that says what was asked and what is in force."""

    def __init__(self, session: Session, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._armed_at = -math.inf
        self._wish: tuple[int, str] = (0, "")
        """Number and words of the newest wish of this panel."""
        self._trouble = ""
        self.start = widgets.Button(description="Start", icon="play", layout=_button_layout())
        self.pause = _press("Pause", "pause")
        self.stop = _press("Stop", "stop")
        self.learning_rate = _learning_rate_slider(session.training.learning_rate)
        self.representatives = _whole_slider("representatives", session.rehearsal.representatives, low=0)
        self._sliders = {"learning_rate": self.learning_rate, "representatives": self.representatives}
        if not isinstance(session.rehearsal.capacity, str):  # given in bytes it has no slider
            self._sliders["capacity"] = _whole_slider("capacity", session.rehearsal.capacity, low=1)
        self.capacity = self._sliders.get("capacity")
        self.said = widgets.HTML()
        self._known = _chosen(session)
        """What each slider was last told, by a person or by the ranks: its echo is not a new wish."""
        self._listen()
        rows = [
            widgets.HBox(
                children, layout={"align_items": "center", "flex_flow": "row wrap", "grid_gap": "2px 4px"}
            )
            for children in ([self.start, self.pause, self.stop], [*self._sliders.values()])
        ]
        self.box = widgets.VBox([*rows, self.said])
        self.outputs = (self.start, self.pause, self.stop, self.said)
        """What only the kernel writes; the sliders belong to the person as well."""
        self.refresh()

    def refresh(self) -> None:
        """Show the present state of the session."""
        state = self._session.state
        self._follow(self._session.timeline.records(Applied))
        _allow(self.start, state == "created", state=state, tooltip="Start the ranks and begin")
        paused = state == "paused"
        self.pause.description, self.pause.icon = ("Resume", "play") if paused else ("Pause", "pause")
        _allow(self.pause, state in STEERABLE, state=state, tooltip="All ranks, at the next step")
        armed = self._clock() - self._armed_at <= CONFIRM_S
        self.stop.description = "Confirm stop" if armed else "Stop"
        self.stop.button_style = "danger" if armed else ""
        stoppable = state in ("starting", *STEERABLE)
        _allow(self.stop, stoppable, state=state, tooltip="End the run here; what was learned is saved")
        for slider in self._sliders.values():
            _allow(slider, state in STEERABLE, state=state, tooltip="Takes effect on all ranks at one step")
        self.said.value = _CSS + self._said()

    def close(self) -> None:
        """Take no more gestures."""
        for widget in (self.start, self.pause, self.stop, *self._sliders.values()):
            widget.disabled = True
            widget.tooltip = "this panel is closed"

    def report(self, trouble: str) -> None:
        """Show what went wrong until the next gesture; an empty text takes it away."""
        self._trouble = trouble
        self.said.value = _CSS + self._said()

    def _listen(self) -> None:
        self.start.on_click(lambda _: self._ask("start", self._session.start))
        self.pause.observe(self._on_pause, "value")
        self.stop.observe(self._on_stop, "value")
        for name, slider in self._sliders.items():
            slider.observe(lambda change, name=name: self._on_slider(name, change["new"]), "value")

    def _on_pause(self, _change: object) -> None:
        # What the person read on the button is what the click means.
        if self.pause.description == "Resume":
            self._ask("resume", self._session.resume)
        else:
            self._ask("pause", self._session.pause)

    def _on_stop(self, _change: object) -> None:
        since = self._clock() - self._armed_at
        if since < DOUBLE_CLICK_S:
            return
        if since <= CONFIRM_S:
            self._armed_at = -math.inf
            self._ask("stop", self._session.stop)
        else:
            self._armed_at = self._clock()
            self.refresh()

    def _on_slider(self, name: str, value: float) -> None:
        if value == self._known[name]:
            return
        self._known[name] = value
        words = _settings({name: value})
        match name:
            case "learning_rate":
                self._ask(words, lambda: self._session.steer(learning_rate=value))
            case "representatives":
                self._ask(words, lambda: self._session.steer(representatives=int(value)))
            case "capacity":
                self._ask(words, lambda: self._session.steer(capacity=int(value)))

    def _ask(self, words: str, call: Callable[[], object]) -> None:
        self._trouble = ""
        try:
            number = call()
            self._wish = (number if isinstance(number, int) else 0, words)
        except RehearsalKitError as error:
            self._trouble = f"{words}: {error}"
        self.refresh()

    def _follow(self, applied: list[Applied]) -> None:
        """Move the sliders to what is in force, unless a wish of this panel is still on its way."""
        newest = max((record.number for record in applied), default=0)
        if not applied or newest < self._wish[0]:
            return
        settings = applied[-1].settings
        for name, slider in self._sliders.items():
            value = settings.get(name, self._known[name])
            # The strategy is in force as well, by its name; a slider shows numbers.
            if not isinstance(value, str) and value != self._known[name]:
                self._known[name] = value
                _reach(slider, value)
                slider.value = value

    def _said(self) -> str:
        applied = self._session.timeline.records(Applied)
        number, words = self._wish
        changed = self._session.timeline.last(StateChanged)
        lines = []
        if number:
            said = answer(applied, number, self._session.ranks)
            lines.append(f"asked (no. {number}): <b>{escape(words)}</b> &rarr; {said}")
        lines += [_refused(trouble) for trouble in (self._trouble, self._session.error) if trouble]
        lines.append(_in_force(applied, self._session))
        said = " &nbsp;·&nbsp; ".join(lines)
        if self._session.state == "paused" and changed is not None and changed.reason:
            said = f"{_refused(f'The ranks paused on their own. {changed.reason}')}<br>{said}"
        return f'<div class="rk-said">{said}</div>'


def answer(applied: list[Applied], number: int, ranks: int) -> str:
    """What the ranks said to a wish, as HTML."""
    answers = {record.rank: record for record in applied if record.number == number}
    if not answers:
        return "not yet in force"
    refused = [record.refused for record in answers.values() if record.refused]
    if refused:
        return f'<span class="rk-refused">refused by all ranks: {escape(refused[0])}</span>'
    steps = " / ".join(str(step) for step in sorted({record.step for record in answers.values()}))
    who = f"all {ranks} ranks" if len(answers) == ranks else f"{len(answers)} of {ranks} ranks"
    return f"in force from step {steps} on {who}"


def _refused(words: str) -> str:
    return f'<span class="rk-refused">{escape(words[:ERROR_LENGTH])}</span>'


def _in_force(applied: list[Applied], session: Session) -> str:
    if applied:
        return f"settings in force: {escape(_settings(applied[-1].settings))}"
    return f"settings chosen: {escape(_settings(_chosen(session)))}"


def _chosen(session: Session) -> dict[str, float]:
    values = {
        "learning_rate": session.training.learning_rate,
        "representatives": session.rehearsal.representatives,
    }
    capacity = session.rehearsal.capacity
    return values if isinstance(capacity, str) else {**values, "capacity": capacity}


def _settings(values: Mapping[str, float | str]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    )


def _allow(widget: Any, allowed: bool, *, state: str, tooltip: str) -> None:
    widget.disabled = not allowed
    widget.tooltip = tooltip if allowed else f"not while the run is {state}"


def _press(description: str, icon: str) -> Any:
    # A ToggleButton, not a Button: once it has been pressed, ipykernel 7.4 answers it on another thread even
    # while a cell blocks the main one; a Button never. Its value means nothing, every change is one press.
    button = widgets.ToggleButton(description=description, icon=icon, layout=_button_layout())
    button.add_class("rk-press")
    return button


def _button_layout() -> dict[str, str]:
    return {"width": "112px"}


def _learning_rate_slider(value: float) -> Any:
    slider = widgets.FloatLogSlider(
        value=1e-3, min=-6, max=-1, step=0.05, readout_format=".2e", description="learning rate",
        continuous_update=False, style={"description_width": "84px"}, layout={"width": "290px"},
    )  # fmt: skip
    _reach(slider, value)
    slider.value = value
    return slider


def _whole_slider(name: str, value: int, *, low: int) -> Any:
    return widgets.IntSlider(
        value=value, min=low, max=max(64, 2 * value), description=name,
        continuous_update=False, style={"description_width": "112px"}, layout={"width": "290px"},
    )  # fmt: skip


def _reach(slider: Any, value: float) -> None:
    """Widen a slider that cannot show this value."""
    place = math.log10(value) if isinstance(slider, widgets.FloatLogSlider) else value
    slider.min = min(slider.min, math.floor(place))
    slider.max = max(slider.max, math.ceil(place))
