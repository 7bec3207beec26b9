"""What can be done to a run besides its settings: tasks, evaluations, checkpoints, notes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from rehearsal_kit.record.records import CheckpointKept, CheckpointTaken, TaskArrived, TaskBegan, TaskEnded
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.kept_checkpoints import kept_checkpoints
from rehearsal_kit.session.session import Session
from rehearsal_kit.widgets.buttons import Confirmed, allow, offer, press, row
from rehearsal_kit.widgets.requests import Requests

NONE = -1


class RunControls:
    """Buttons and menus, each gesture one wish; going back to a checkpoint asks again."""

    def __init__(
        self, session: Session, wishes: Requests, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._wishes = wishes
        self._going_back = Confirmed(clock=clock)
        self._kept: object = None
        """The newest checkpoint on disk when the menu was made."""
        self._waiting: object = None
        """What waited when the menu was made."""
        self.finish = press("Finish task", "step-forward", width="116px")
        self.evaluate = press("Evaluate now", "bar-chart", width="132px")
        self.checkpoint = press("Checkpoint now", "save", width="140px")
        self.note = widgets.Text(
            placeholder="note about this step, then Enter", continuous_update=False, layout={"width": "236px"}
        )
        self.checkpoints = _menu("checkpoint", "none yet", width="320px")
        self.roll_back = press("Roll back", "undo", width="168px")
        self.waiting = _menu("waiting", "no task waits", width="240px")
        self.next = press("Next", "arrow-up", width="72px")
        self.skip = press("Skip", "times", width="72px")
        self.presses = (
            self.finish, self.evaluate, self.checkpoint, self.roll_back, self.next, self.skip
        )  # fmt: skip
        self.box = row([self.checkpoints, self.roll_back, self.waiting, self.next, self.skip])
        self._listen()

    @property
    def all(self) -> tuple[Any, ...]:
        """Everything that a person can use."""
        return (*self.presses, self.note, self.checkpoints, self.waiting)

    def refresh(self, why_not: str) -> None:
        """Show what there is to choose from, and what can be done now."""
        timeline = self._session.timeline.lineage()
        self._offer_checkpoints()
        waiting = timeline.waiting()
        self._offer_waiting(waiting)
        none_waits = "" if waiting else "no task waits"
        idle = "" if _under_way(timeline) else "no task is under way"
        allow(self.finish, why_not or idle, tooltip="It has been trained enough: evaluate it, begin the next")
        allow(self.evaluate, why_not, tooltip="All tasks so far, at this step")
        allow(self.checkpoint, why_not, tooltip="Keep all that the run is at this step")
        allow(self.note, why_not, tooltip="Written into the timeline of the run")
        allow(self.waiting, why_not or none_waits, tooltip="Tasks that wait to be trained")
        allow(self.next, why_not or none_waits, tooltip="Train this one next")
        allow(self.skip, why_not or none_waits, tooltip="Do not train this one")
        self._refresh_roll_back(why_not)

    def _refresh_roll_back(self, why_not: str) -> None:
        chosen = self.checkpoints.value
        none = "no checkpoint is on disk yet" if chosen == NONE else ""
        if why_not or none:
            self._going_back.forget()
        armed = self._going_back.armed
        self.roll_back.description = f"Confirm: back to #{chosen}" if armed else "Roll back"
        self.roll_back.button_style = "danger" if armed else ""
        allow(self.checkpoints, why_not or none, tooltip="Kept on disk, the newest first")
        tooltip = "Go on from this checkpoint as another branch; what the run is now is kept first"
        allow(self.roll_back, why_not or none, tooltip=tooltip)

    def _offer_waiting(self, waiting: Mapping[int, TaskArrived]) -> None:
        if waiting is self._waiting:
            return
        self._waiting = waiting
        options = [(f"{number} {task.name}", number) for number, task in waiting.items()]
        offer(self.waiting, options or [("no task waits", NONE)])

    def _offer_checkpoints(self) -> None:
        kept = self._session.timeline.last(CheckpointKept)
        if kept is self._kept:  # a menu is not made twice a second for nothing
            return
        self._kept = kept
        branched = len(self._session.timeline.branches) > 1
        # Not of session.checkpoints(), whose pandas would cost every kernel half a second and 20 MB.
        on_disk = kept_checkpoints(self._session.timeline)[::-1]
        options = [(_label(taken, kept, branched=branched), taken.checkpoint) for taken, kept in on_disk]
        offer(self.checkpoints, options or [("none yet", NONE)])

    def _listen(self) -> None:
        session, ask = self._session, self._wishes.ask
        self.finish.observe(lambda _: ask("finish this task", session.finish_task), "value")
        self.evaluate.observe(lambda _: ask("evaluate now", session.evaluate), "value")
        self.checkpoint.observe(lambda _: ask("checkpoint now", session.checkpoint), "value")
        self.next.observe(lambda _: self._on_waiting("{} next", session.reorder), "value")
        self.skip.observe(lambda _: self._on_waiting("skip {}", session.skip), "value")
        self.note.observe(lambda change: self._on_note(change["new"]), "value")
        self.roll_back.observe(lambda _: self._on_roll_back(), "value")
        self.checkpoints.observe(lambda _: self._on_another(), "value")

    def _on_waiting(self, words: str, call: Callable[[int], int]) -> None:
        task, label = self.waiting.value, self.waiting.label
        if task != NONE:
            self._wishes.ask(words.format(f"task {label}"), lambda: call(task))

    def _on_note(self, text: str) -> None:
        if text.strip():
            self._wishes.ask("note", lambda: self._session.note(text))
            self.note.value = ""

    def _on_roll_back(self) -> None:
        chosen = self.checkpoints.value
        if chosen != NONE and self._going_back.pressed(chosen):
            self._wishes.ask(f"roll back to checkpoint {chosen}", lambda: self._session.roll_back(chosen))
        else:
            self._refresh_roll_back("")

    def _on_another(self) -> None:
        self._going_back.forget()
        self._refresh_roll_back("")


def _under_way(timeline: Timeline) -> bool:
    return isinstance(timeline.newest((TaskBegan, TaskEnded)), TaskBegan)


def _label(taken: CheckpointTaken, kept: CheckpointKept, *, branched: bool) -> str:
    branch = f"branch {taken.branch} " if branched else ""
    known = kept.error is not None and not math.isnan(kept.error)
    return f"#{taken.checkpoint} {branch}step {taken.step}" + (f", error {kept.error:.2g}" if known else "")


def _menu(description: str, nothing: str, *, width: str) -> Any:
    return widgets.Dropdown(
        options=[(nothing, NONE)], description=description,
        style={"description_width": "auto"}, layout={"width": width},
    )  # fmt: skip
