"""The panel of a session: state, steering, curves, tasks and pictures on one screen."""

from __future__ import annotations

import logging
import threading
import time
from html import escape
from typing import Any
from weakref import WeakKeyDictionary, ref

import ipywidgets as widgets

from rehearsal_kit.base.errors import said
from rehearsal_kit.record.preview_files import Preview, Wanted
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.figures import (
    CONFIG,
    Curve,
    left_curves,
    live_curves,
    live_figure,
    look,
)
from rehearsal_kit.reports.pictures import Tile, field_scale, input_tile
from rehearsal_kit.session.session import Session
from rehearsal_kit.widgets.asked_preview import AskedPreview
from rehearsal_kit.widgets.buttons import offer
from rehearsal_kit.widgets.controls import Controls
from rehearsal_kit.widgets.live_widgets import Pacer, StateLine, Tiles
from rehearsal_kit.widgets.status import banner, facts, tasks_html
from rehearsal_kit.widgets.whole_figure import WholeFigure

PERIOD_S = 0.5
"""Seconds between two pushes."""
REPAIR_S = 5.0
"""Everything is sent again after this time even if nothing changed: a message may have been lost."""
NEWEST = -1
WEIGHTS = {False: "the average of the weights", True: "the weights in training"}
"""Whose prediction is shown where the run keeps an average, as `Preview.trained` has it."""
CAPTIONS = (
    "diffraction (log10)",
    "true amplitude",
    "predicted amplitude",
    "true phase (rad)",
    "predicted phase (rad)",
)
"""Captions of the empty frames before the first picture: those of ptychography."""

_log = logging.getLogger(__name__)
_OPEN: WeakKeyDictionary[Session, ref[Panel]] = WeakKeyDictionary()
"""The dashboards that were asked for and are not closed. Sessions keep them; this keeps no session alive."""


def dashboard(session: Session) -> Panel:
    """The panel of this session; the same call gives the same panel, until it is closed."""
    open_one = _OPEN[session]() if session in _OPEN else None
    if open_one is None:
        open_one = Panel(session)
        _OPEN[session] = ref(open_one)
    return open_one


class Panel:
    """Shows a session and steers it. Nothing is lost with it: the session owns the state, and closes it last.

    A thread of its own pushes twice a second, so that it goes on while a cell runs.
    """

    def __init__(self, session: Session, *, pump: bool = True) -> None:
        self.session = session
        self.line = StateLine()
        self.pacer = Pacer()
        self.controls = Controls(session)
        self.banner = widgets.HTML(layout={"display": "none"})
        self.figure = _figure_widget([])
        self._plots = _plots(self.figure)
        self._others: list[int] = []
        """Branches that were left and have a curve."""
        self.tasks = widgets.HTML(tasks_html(session.timeline))
        self.pattern = widgets.Dropdown(
            options=[("newest", NEWEST)], description="held-out pattern of task",
            style={"description_width": "auto"}, layout={"width": "360px"},
        )  # fmt: skip
        self.weights = widgets.Dropdown(
            options=[(words, trained) for trained, words in WEIGHTS.items()], description="predicted by",
            tooltip="The average is what the run stores and exports", layout={"width": "280px"},
            style={"description_width": "auto"},
        )  # fmt: skip
        self.about = widgets.HTML()
        self.tiles = Tiles()
        self.tiles.clear(CAPTIONS)
        self.box = self._arrange()
        self._asked = AskedPreview(self._preview)
        self._last = ""
        """What the pictures show, as HTML."""
        self._shown: object = None
        self._dressed: object = None
        self._curves: list[Curve] = []
        """That the page has, unless a message was lost."""
        self._offered: object = None
        self._repaired_at = 0.0
        self._ending = threading.Event()
        self._wake = threading.Event()
        self.line.observe(self._on_page, ["acknowledged", "hello", "theme"])
        for chosen in (self.pattern, self.weights):
            chosen.observe(lambda _: self._wake.set(), "value")
        self._outlive = session.on_close(self.close)
        """Has the session close it no more."""
        self._thread = threading.Thread(target=self._pump, daemon=True, name="rehearsal-kit-panel")
        if pump:
            self._thread.start()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)

    def close(self) -> None:
        """Stop the pump; the page keeps the last state and says that it is closed."""
        self._ending.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._try_push()
        self.controls.close()
        self.pattern.disabled = self.weights.disabled = True
        self.line.closed = True
        self._outlive()
        if self.session in _OPEN and _OPEN[self.session]() is self:
            del _OPEN[self.session]

    def push(self) -> None:
        """Send the present state to the page: all of it whenever anything changed, or may have got lost."""
        session = self.session
        state, timeline = session.state, session.timeline
        self.controls.refresh()
        self.line.state = state
        self.line.facts = facts(timeline, state=state, ranks=session.ranks)
        self._warn(timeline, state)
        self._offer_tasks(timeline)
        chosen = (self.pattern.value, self.weights.value)
        shown = (len(timeline), chosen, self.line.hello, self.line.theme)
        repair = time.monotonic() - self._repaired_at >= REPAIR_S
        if shown != self._shown or repair:
            self.tasks.value = tasks_html(timeline)
            self._show_pattern()
            self._show_curves(whole=repair)
            self._shown = shown
        elif self._asked.waits:
            self._show_pattern()
        if repair:
            for widget in (self.line, self.banner, self.tasks, self.tiles, self.about):
                widget.send_state()
            self.controls.repair()
            self._repaired_at = time.monotonic()
        self.line.push = self.pacer.send()

    def _pump(self) -> None:
        spent = 0.0
        # A long history takes longer to show; the panel never takes more than a fifth of the kernel's time.
        while not self._pause(max(PERIOD_S, 4 * spent)):
            if not self.pacer.ready():
                continue
            began = time.monotonic()
            self._try_push()
            spent = time.monotonic() - began

    def _try_push(self) -> None:
        try:
            self.push()
        except Exception as error:
            # Said on the page, where the clock goes stale as well; the next push may succeed.
            _log.exception("the dashboard could not be updated")
            when = time.strftime("%H:%M:%S")
            self.controls.report(f"not updated at {when}: {said(error)}")

    def _pause(self, seconds: float) -> bool:
        self._wake.wait(seconds)
        self._wake.clear()
        return self._ending.is_set()

    def _on_page(self, _change: object) -> None:
        self.pacer.acknowledged = self.line.acknowledged

    def _warn(self, timeline: Timeline, state: str) -> None:
        session = self.session
        take_over = "" if session.leads else f"session = rk.attach({str(session.run.path)!r}, take=True)"
        self.banner.value = banner(timeline, state=state, take_over=take_over)
        self.banner.layout.display = None if self.banner.value else "none"

    def _offer_tasks(self, timeline: Timeline) -> None:
        tasks = timeline.lineage().tasks()
        if tasks is self._offered:
            return
        self._offered = tasks
        offer(
            self.pattern,
            [("newest", NEWEST), *((f"{number} {t.name}", number) for number, t in tasks.items())],
        )

    def _preview(self, wanted: Wanted) -> Preview | None:
        task, trained = wanted
        return self.session.preview(task, trained=trained)

    def _show_pattern(self) -> None:
        task = self.pattern.value
        answer = self._asked.answer((None if task == NEWEST else task, self.weights.value))
        if not answer.done():  # rank 0 is busy or frozen: the state and the banner tell, and must be pushed
            return
        preview = answer.result()
        if preview is not None:
            self._last = about(preview)
            self.about.value = self._last
            self.tiles.show(tiles(preview))
        else:
            # Nobody predicts any more once the ranks have ended: the last pictures stay.
            self.about.value = f"last picture: {self._last}" if self._last else "no prediction yet"

    def _show_curves(self, *, whole: bool) -> None:
        """The curves that are others than before; whole: all, since a message may have been lost."""
        timeline = self.session.timeline
        left, straight = left_curves(timeline), timeline.lineage()
        if [*left] != self._others:
            self._rebuild([*left])
        curves = [*live_curves(straight), *left.values()]
        dress = (self.line.theme, self.line.hello)
        same = len(self._curves) == len(curves) and dress == self._dressed and not whole
        with self.figure.batch_update():
            for number, (trace, curve) in enumerate(zip(self.figure.data, curves, strict=True)):
                if not (same and curve.shows_the_same(self._curves[number])):
                    trace.x, trace.y, trace.customdata = curve.x, curve.y, curve.task
            if dress != self._dressed:
                self.figure.update_layout(look(self.line.theme))
        self._dressed, self._curves = dress, curves

    def _rebuild(self, others: list[int]) -> None:
        """Another figure, since a page that comes back later finds only traces made with it."""
        before, self.figure = self.figure, _figure_widget(others)
        self._plots.children = [self.figure]
        self._others, self._dressed, self._curves = others, None, []
        before.close()

    def _arrange(self) -> Any:
        choice = [] if self.session.training.average is None else [self.weights]
        tasks = widgets.Box([self.tasks], layout={"flex": "0 0 380px", "height": "300px", "overflow": "auto"})
        box = widgets.VBox([
            self.line,
            self.banner,
            self.controls.box,
            widgets.HBox([self._plots, tasks], layout={"overflow": "hidden"}),
            widgets.HBox([self.pattern, *choice, self.about], layout={"align_items": "center"}),
            self.tiles,
        ])  # fmt: skip
        box.add_class("rk-panel")
        return box


def tiles(preview: Preview) -> list[Tile]:
    """The pictures of a preview: the input, then truth and prediction of each field on the truth's scale."""
    shown = [input_tile(preview.name, preview.input)]
    for name, truth in preview.truth.items():
        caption, scale = "phase (rad)" if name == "phase" else name, field_scale(name, truth)
        shown.append(Tile(f"true {caption}", truth, scale))
        shown.append(Tile(f"predicted {caption}", preview.predicted[name], scale))
    return shown


def about(preview: Preview) -> str:
    """What a preview shows and says, as HTML."""
    made = f"task {preview.task}, as predicted at step {preview.step}"
    if preview.trained is not None:
        made += f" by {WEIGHTS[preview.trained]}"
    return f"{made}: {escape(preview.words)}" if preview.words else made


def _figure_widget(others: list[int]) -> Any:
    figure = WholeFigure(live_figure(others))
    figure._config = CONFIG
    return figure


def _plots(figure: Any) -> Any:
    box = widgets.Box([figure], layout={"flex": "1 1 0", "min_width": "0", "overflow": "hidden"})
    box.add_class("rk-plots")
    return box
