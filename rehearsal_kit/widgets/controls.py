"""The steering rows: every gesture is one call of the session, and what is shown is what the ranks confirmed.

A callback may run on any thread, so it asks the session for one thing and keeps the number it got.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from rehearsal_kit.record.records import Applied, StateChanged
from rehearsal_kit.session.session import Session
from rehearsal_kit.widgets.buttons import CSS, STEERABLE, Confirmed, allow, press, row, why_not
from rehearsal_kit.widgets.requests import Requests, refused, spelt
from rehearsal_kit.widgets.run_controls import RunControls
from rehearsal_kit.widgets.setting_controls import SettingControls

STOPPABLE = ("starting", "recovering", *STEERABLE)


class Controls:
    """Start, pause, stop, settings, tasks, checkpoints, and lines that say what was asked and is in force."""

    def __init__(self, session: Session, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._stopping = Confirmed(clock=clock)
        self._wishes = Requests(session, asked=self._on_asked)
        self._trouble = ""
        """Trouble of the panel itself."""
        self.start = widgets.Button(description="Start", icon="play", layout={"width": "96px"})
        self.pause = press("Pause", "pause")
        self.stop = press("Stop", "stop")
        self.setting_controls = SettingControls(session, self._wishes)
        self.run_controls = RunControls(session, self._wishes, clock=clock)
        self.said = widgets.HTML()
        self._listen()
        run_controls = self.run_controls
        buttons = [
            self.start,
            self.pause,
            self.stop,
            run_controls.finish,
            run_controls.evaluate,
            run_controls.checkpoint,
            run_controls.note,
        ]
        self.box = widgets.VBox(
            [
                row(buttons),
                self.setting_controls.main,
                run_controls.box,
                self.setting_controls.more,
                self.said,
            ]
        )
        self._outputs = (self.start, self.pause, self.stop, *self.run_controls.presses, self.said)
        """What only the kernel writes; sliders, fields and menus belong to the person as well."""
        self.refresh()

    def refresh(self) -> None:
        """Show the present state of the session."""
        session, applied = self._session, self._session.timeline.records(Applied)
        state, leads = session.state, session.leads
        steerable = why_not(state, leads=leads)
        self.setting_controls.refresh(applied, steerable)
        self.run_controls.refresh(steerable)
        startable = why_not(state, leads=leads, allowed=("created",))
        allow(self.start, startable, tooltip="Start the ranks and begin")
        paused = state == "paused"
        self.pause.description, self.pause.icon = ("Resume", "play") if paused else ("Pause", "pause")
        allow(self.pause, steerable, tooltip="All ranks, at the next step")
        armed = self._stopping.armed
        self.stop.description = "Confirm stop" if armed else "Stop"
        self.stop.button_style = "danger" if armed else ""
        stoppable = why_not(state, leads=leads, allowed=STOPPABLE)
        allow(self.stop, stoppable, tooltip="End the run here; what was learned is saved")
        self.said.value = CSS + self._said(applied)

    def repair(self) -> None:
        """Send again what only the kernel writes: a message may have been lost."""
        for widget in self._outputs:
            widget.send_state()
        for menu in (self.run_controls.checkpoints, self.run_controls.waiting):
            menu.send_state("_options_labels")

    def close(self) -> None:
        """Take no more gestures."""
        for widget in (
            self.start,
            self.pause,
            self.stop,
            *self.setting_controls.widgets.values(),
            *self.run_controls.all,
        ):
            widget.disabled = True
            widget.tooltip = "this panel is closed"

    def report(self, trouble: str) -> None:
        """Show what went wrong until the next gesture; an empty text takes it away."""
        self._trouble = trouble
        self.said.value = CSS + self._said(self._session.timeline.records(Applied))

    def _listen(self) -> None:
        self.start.on_click(lambda _: self._wishes.ask("start", self._session.start))
        self.pause.observe(self._on_pause, "value")
        self.stop.observe(self._on_stop, "value")

    def _on_asked(self) -> None:
        self._trouble = ""
        self.refresh()

    def _on_pause(self, _change: object) -> None:
        # What the person read on the button is what the click means.
        if self.pause.description == "Resume":
            self._wishes.ask("resume", self._session.resume)
        else:
            self._wishes.ask("pause", self._session.pause)

    def _on_stop(self, _change: object) -> None:
        if self._stopping.pressed():
            self._wishes.ask("stop", self._session.stop)
        else:
            self.refresh()

    def _said(self, applied: list[Applied]) -> str:
        session = self._session
        said = (self._trouble, self._wishes.trouble, session.refused, session.error)
        troubles = [trouble for trouble in said if trouble]
        lines = [" &nbsp;·&nbsp; ".join([*self._wishes.answers(applied), *map(refused, troubles)])]
        if applied:
            lines.append(f"settings in force: {escape(spelt(applied[-1].settings))}")
        else:
            lines.append(f"settings chosen: {escape(spelt(self.setting_controls.chosen))}")
        changed = session.timeline.last(StateChanged)
        if session.state == "paused" and changed is not None and changed.reason:
            lines.insert(0, refused(f"The ranks paused on their own. {changed.reason}"))
        return f'<div class="rk-said">{"<br>".join(line for line in lines if line)}</div>'
