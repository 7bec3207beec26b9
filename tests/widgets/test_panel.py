"""The panel without a browser: widgets are plain objects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from html import escape
from types import SimpleNamespace

import numpy as np
import pytest
from runkit import arrived

from rehearsal_kit.base.errors import SessionError
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.bench.run.long_runs import LongRun
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.answers import answers
from rehearsal_kit.record.preview_files import Preview
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, RunOver, Stalled
from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointFailed,
    CheckpointKept,
    CheckpointTaken,
    Evaluated,
    NotKept,
    StabilityLooked,
    StateChanged,
    Steps,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports import pictures
from rehearsal_kit.reports.figures import (
    PALETTE,
    decimate,
    left_curves,
    live_curves,
    live_figure,
    loss_curves,
    watched_curves,
)
from rehearsal_kit.session.tables import results_table
from rehearsal_kit.widgets.asked_preview import AskedPreview
from rehearsal_kit.widgets.controls import Controls
from rehearsal_kit.widgets.live_widgets import Pacer
from rehearsal_kit.widgets.panel import CAPTIONS, Panel, dashboard, tiles
from rehearsal_kit.widgets.requests import answer
from rehearsal_kit.widgets.run_controls import NONE
from rehearsal_kit.widgets.status import banner, facts, tasks_html


class StandIn:
    """A session that only notes what it was asked."""

    def __init__(self, state: str = "running") -> None:
        self.state, self.error, self.ranks = state, "", 2
        self.at_its_end: list[Callable[[], object]] = []
        self.training, self.rehearsal, self.strategy = Training(), Rehearsal(), ER()
        self.leads, self.run = True, SimpleNamespace(path="/runs/<today>")
        self.holders, self.refused = ("",), ""
        self.timeline = Timeline()
        self.shown = preview("diffraction", ("amplitude", "phase"))
        self.asked: list[object] = []

    def _wish(self, wish: object) -> int:
        self.asked.append(wish)
        return len(self.asked)

    def on_close(self, callback: Callable[[], object]) -> Callable[[], None]:
        self.at_its_end.append(callback)
        return lambda: self.at_its_end.remove(callback)

    def start(self) -> None:
        self._wish("start")

    def pause(self) -> int:
        return self._wish("pause")

    def resume(self) -> int:
        return self._wish("resume")

    def stop(self) -> int:
        return self._wish("stop")

    def steer(self, **wanted: float) -> int:
        return self._wish(wanted)

    def finish_task(self) -> int:
        return self._wish("finish task")

    def skip(self, task: int) -> int:
        return self._wish(("skip", task))

    def reorder(self, *tasks: int) -> int:
        return self._wish(("reorder", *tasks))

    def evaluate(self) -> int:
        return self._wish("evaluate")

    def checkpoint(self) -> int:
        return self._wish("checkpoint")

    def roll_back(self, checkpoint: int) -> int:
        return self._wish(("roll back", checkpoint))

    def note(self, text: str) -> int:
        return self._wish(("note", text))

    def preview(self, task: int | None, *, trained: bool = False) -> Preview | None:
        return self.shown


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def preview(name: str, fields: tuple[str, ...], words: str = "") -> Preview:
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    truth, predicted = dict.fromkeys(fields, ramp), dict.fromkeys(fields, 2 * ramp)
    return Preview(task=0, step=5, name=name, input=ramp, truth=truth, predicted=predicted, words=words)


def applied(number: int, **values: object) -> Applied:
    given = {"rank": 0, "step": 7, "kind": "Steer", "digest": "d", "settings": {"learning_rate": 1e-3}}
    return Applied(number=number, **{**given, **values})


def steps(first: int, task: int, losses: tuple[float, ...]) -> Steps:
    return Steps(
        first=first, task=task, losses=losses, seconds=0.5, waited=0.1, hidden=0.3, representatives=3,
        remote=1, stored=40, time=0.0,
    )  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session() -> StandIn:
    return StandIn()


def test_pause_button_asks_for_what_it_says(session):
    controls = Controls(session)
    controls.pause.value = not controls.pause.value
    session.state = "paused"
    controls.refresh()
    assert controls.pause.description == "Resume"
    controls.pause.value = not controls.pause.value
    assert session.asked == ["pause", "resume"]


def test_start_button(session):
    session.state = "created"
    controls = Controls(session)
    assert not controls.start.disabled
    assert controls.pause.disabled
    assert "created" in controls.pause.tooltip
    controls.start.click()
    assert session.asked == ["start"]


def test_stop_asks_again(session, clock):
    controls = Controls(session, clock=clock)
    controls.stop.value = True
    assert controls.stop.description == "Confirm stop"
    assert session.asked == []
    clock.now += 1
    controls.stop.value = False
    assert session.asked == ["stop"]
    assert controls.stop.description == "Stop"


def test_stop_forgets_after_five_seconds_and_ignores_a_double_click(session, clock):
    controls = Controls(session, clock=clock)
    controls.stop.value = True
    clock.now += 0.1
    controls.stop.value = False
    clock.now += 6
    controls.refresh()
    assert controls.stop.description == "Stop"
    controls.stop.value = True
    assert controls.stop.description == "Confirm stop"
    assert session.asked == []


def test_sliders_steer_once(session):
    controls = Controls(session)
    controls.setting_controls["learning_rate"].value = 2e-4
    controls.setting_controls["representatives"].value = 12
    controls.setting_controls["capacity"].value = 3000
    assert session.asked == [{"learning_rate": 2e-4}, {"representatives": 12}, {"capacity": 3000}]
    assert not controls.setting_controls["learning_rate"].continuous_update
    assert not controls.setting_controls["representatives"].continuous_update


def test_slider_follows_what_is_in_force_without_asking_again(session):
    controls = Controls(session)
    settings = {"learning_rate": 5e-4, "representatives": 200, "capacity": 9000}
    session.timeline.append(applied(0, settings=settings))
    controls.refresh()
    assert (
        controls.setting_controls["learning_rate"].value,
        controls.setting_controls["representatives"].value,
    ) == (5e-4, 200)
    assert controls.setting_controls["capacity"].value == 9000
    assert session.asked == []


def test_settings_may_be_text(session):
    session.timeline.append(
        applied(0, settings={"strategy": "<DERpp>", "alpha": 0.5, "representatives": 8, "capacity": "1 GiB"})
    )
    controls = Controls(session)
    assert "strategy &lt;DERpp&gt;, alpha 0.5, representatives 8, capacity 1 GiB" in controls.said.value
    assert (
        controls.setting_controls["representatives"].value,
        controls.setting_controls["capacity"].value,
    ) == (
        8,
        session.rehearsal.capacity,
    )


def test_why_the_ranks_paused_is_said_until_the_run_goes_on(session):
    reason = f"the loss is <nan>; {'x' * 570} or stop."
    session.state = "paused"
    session.timeline.append(StateChanged(step=3, state="paused", reason=reason))
    controls = Controls(session)
    assert '<span class="rk-refused">The ranks paused' in controls.said.value
    assert escape(reason) in controls.said.value
    session.state = "running"
    session.timeline.append(StateChanged(step=3, state="running"))
    controls.refresh()
    assert 'rk-refused">' not in controls.said.value


def test_a_pause_that_a_person_asked_for_needs_no_reason(session):
    session.state = "paused"
    session.timeline.append(StateChanged(step=3, state="paused"))
    assert 'rk-refused">' not in Controls(session).said.value


def test_a_capacity_in_bytes_has_no_slider(session):
    session.rehearsal = Rehearsal(capacity="1 GiB")
    controls = Controls(session)
    assert "capacity" not in controls.setting_controls.widgets
    assert "capacity" not in controls.said.value


def test_slider_waits_for_the_answer_to_its_own_wish(session):
    controls = Controls(session)
    controls.setting_controls["representatives"].value = 12
    session.timeline.append(applied(0, settings={"representatives": 24}))
    controls.refresh()
    assert controls.setting_controls["representatives"].value == 12
    assert "not yet in force" in controls.said.value
    session.timeline.append(applied(1, settings={"representatives": 24}, refused="too <many>"))
    controls.refresh()
    assert controls.setting_controls["representatives"].value == 24
    assert "too &lt;many&gt;" in controls.said.value


def test_refused_gesture_is_said(session, monkeypatch):
    def refuse() -> int:
        raise SessionError("not <now>")

    session.pause = refuse
    controls = Controls(session)
    controls.pause.value = True
    assert "not &lt;now&gt;" in controls.said.value


def test_answer_counts_ranks():
    one, two = applied(3, rank=0), applied(3, rank=1)
    assert answer([], 2) == "not yet in force"
    assert answer([one], 2) == "in force from step 7 on 1 of 2 ranks"
    assert answer([one, two], 2) == "in force from step 7 on all 2 ranks"


def test_an_answer_is_that_of_as_many_ranks_as_have_heard_it(session):
    """A wish that three ranks had heard is decided again where the run goes on with two, and with three."""
    heard = [applied(3, rank=rank, ranks=3) for rank in range(3)]
    heard += [applied(3, rank=rank, ranks=2) for rank in range(2)]
    assert answer(answers(heard[:2], 3, [""]), 3) == "in force from step 7 on 2 of 3 ranks"
    assert answer(answers(heard[:4], 3, [""]), 3) == "in force from step 7 on 1 of 2 ranks"
    assert answer(answers(heard, 3, [""]), 3) == "in force from step 7 on all 2 ranks"
    assert answers(heard, 4, [""]) == answers(heard, 3, ["another kernel"]) == []


def test_pacer_sends_on_credit_or_after_patience(clock):
    pacer = Pacer(patience=2, clock=clock)
    assert pacer.ready()
    assert pacer.send() == 1
    assert not pacer.ready()
    pacer.acknowledged = 1
    assert pacer.ready()
    pacer.send()
    clock.now += 1.9
    assert not pacer.ready()
    clock.now += 0.1
    assert pacer.ready()


@pytest.mark.parametrize("most", [4, 5, 100, 999])
def test_decimation_keeps_spikes_and_ends(most):
    values = np.zeros(10_000)
    values[[1234, 7777]] = 9, -9
    kept = decimate(values, most=most)
    assert {0, 1234, 7777, 9999} <= set(kept)
    assert len(kept) <= most
    assert (np.diff(kept) > 0).all()


def test_curves_have_a_gap_between_tasks_of_one_colour():
    timeline = Timeline([steps(0, 0, (1.0, 2.0)), steps(2, 8, (3.0,)), steps(3, 1, (4.0,))])
    curves = loss_curves(timeline)
    assert len(curves) == len(PALETTE)
    np.testing.assert_array_equal(curves[0].y, [1, 2, np.nan, 3, np.nan])
    np.testing.assert_array_equal(curves[0].task, [0, 0, np.nan, 8, np.nan])
    np.testing.assert_array_equal(curves[1].x, [3, np.nan])


def test_watched_curves_leave_the_test_split_out():
    records = [
        Evaluated(step=9, after=0, task=0, split=split, errors={"amplitude": 0.5, "phase": 0.25})
        for split in ("watched", "test")
    ]
    assert watched_curves(Timeline(records))[0].y[0] == 0.75
    assert len(watched_curves(Timeline(records))[0].y) == 2


def test_curves_and_the_list_of_a_long_stream_are_bounded(session):
    """Two thousand tasks: the newest have lines of their own, the older ones share some, none is a dot."""
    records = [*LongRun(8_000, 2_000).records()]
    timeline = Timeline(records, bounded=True)
    losses = loss_curves(timeline)
    for curves in (losses, watched_curves(timeline)):
        assert sum(len(curve.x) for curve in curves) < 4_000
        assert all(np.isnan(curve.x[-1]) for curve in curves)
    told = {at: np.float32(loss) for at, loss in zip(*Timeline(records).losses(), strict=True)}
    for curve in losses:
        assert (np.diff(np.flatnonzero(np.isnan(curve.x))) > 2).all()  # two points at least between two gaps
        there = ~np.isnan(curve.x)
        shown = [told[int(at)] for at in curve.x[there]]
        np.testing.assert_array_equal(curve.y[there], shown)
    assert max(np.nanmax(curve.x) for curve in losses) == max(told)
    html = tasks_html(timeline)
    assert "1950 earlier tasks: see session.table()" in html
    assert html.count("<tr") < 70
    begun = Timeline([*(arrived(n) for n in range(300)), TaskBegan(step=0, task=99, steps=1, time=0.0)])
    html = tasks_html(begun)
    assert "50 earlier tasks" in html
    assert "150 more wait" in html
    assert ">training<" in html


def test_only_curves_that_changed_are_sent_again(session):
    panel = Panel(session, pump=False)
    tell(session, arrived(0), steps(0, 0, (1.0, 2.0)), steps(2, 1, (3.0, 4.0)))
    panel.push()
    sent = []
    panel.figure.data[0].on_change(lambda *_: sent.append(0), "y")
    panel.figure.data[1].on_change(lambda *_: sent.append(1), "y")
    tell(session, steps(4, 1, (5.0,)))
    panel.push()
    assert sent == [1]
    assert panel.figure.data[1].y[:3].tolist() == [3, 4, 5]
    panel.close()


def test_what_cannot_be_kept_is_said_until_it_can_be():
    timeline = Timeline([NotKept(what="previews", reason="No <space>", time=0.0)])
    assert "previews cannot be kept, the run goes on: No &lt;space&gt;" in banner(timeline, state="running")
    timeline.append(NotKept(what="previews", reason="", time=1.0))
    assert banner(timeline, state="running") == ""


def test_a_run_that_moves_to_another_job_says_so():
    over = RunOver(outcome="interrupted", error="", time=0.0, moves_to="18")
    assert "moving to job 18, whose turn has not come" in banner(Timeline([over]), state="moving")


def test_live_figure_has_a_trace_for_every_curve():
    assert len(live_figure().data) == len(live_curves(Timeline()))
    assert len(live_figure([3]).data) == len(live_curves(Timeline())) + 1


def test_facts_of_an_empty_and_of_a_running_session():
    assert ("step", "0") in facts(Timeline(), state="created", ranks=2)
    timeline = Timeline([arrived(0), TaskBegan(step=0, task=0, steps=9, time=0.0), steps(0, 0, (1.0, 1.0))])
    told = dict(facts(timeline, state="running", ranks=2))
    assert told["task"] == "1 of 1"
    assert told["step"] == "2"
    assert told["steps/s"] == "4.0"
    assert told["waited for samples"] == "20%"


def test_the_stability_gap_is_shown_where_somebody_looked():
    timeline = Timeline([arrived(0), arrived(1), TaskBegan(step=0, task=0, steps=9, time=0.0)])
    assert "gap" not in tasks_html(timeline)
    assert "stability gap" not in dict(facts(timeline, state="running", ranks=1))
    for worst, branch in ((0.3, 0), (0.25, 0)):  # a task that was begun again: what was seen last
        timeline.append(StabilityLooked(step=9, task=1, before=0.2, worst=worst, at=3, branch=branch))
    assert dict(facts(timeline, state="running", ranks=1))["stability gap"] == "1.25"
    html = tasks_html(timeline)
    assert "<th class='rk-right'>gap</th>" in html
    assert html.count("<td class='rk-right'>1.25</td>") == 1
    assert "gap: largest error of earlier tasks" in html
    assert results_table(timeline)["stability gap"].tolist()[1] == 1.25


def test_task_list_escapes_and_tells_states():
    timeline = Timeline([
        arrived(0, "<b>one</b>"), arrived(1), TaskBegan(step=0, task=0, steps=1, time=0.0),
        TaskEnded(step=1, task=0, seconds=1.0, time=0.0),
        TaskSetAside(step=1, name="<i>", path="/p", reason="<script>"),
    ])  # fmt: skip
    html = tasks_html(timeline)
    assert "&lt;b&gt;one&lt;/b&gt;" in html
    assert "trained" in html
    assert "arrived" in html
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_nan_is_transparent_and_limits_are_those_of_the_truth():
    image = np.array([[np.nan, 0.0], [1.0, 5.0]], np.float32)
    numbers = pictures.indices(image, pictures.Scale(0, 1, pictures.colours("grey")))
    assert numbers.tolist() == [[0, 1], [255, 255]]
    assert pictures.phase_scale(np.full((2, 2), 3.1, np.float32)).high == pytest.approx(np.pi)
    assert pictures.phase_scale(np.full((2, 2), 0.1, np.float32)).high == pytest.approx(0.105)


def test_panel_pushes_absolute_state(session):
    panel = Panel(session, pump=False)
    session.timeline.append(arrived(0, "scan_7"))
    session.timeline.append(steps(0, 0, (1.0, 2.0)))
    panel.push()
    assert panel.line.push == 1
    assert dict(panel.line.facts)["step"] == "2"
    assert [tile["caption"] for tile in panel.tiles.tiles] == list(CAPTIONS)
    assert panel.figure.data[0].y[:2].tolist() == [1, 2]
    assert [name for name, _ in panel.pattern.options] == ["newest", "0 scan_7"]
    panel.close()


def test_truth_and_prediction_share_the_scale_of_the_truth():
    shown = tiles(preview("diffraction", ("amplitude", "phase", "height")))
    assert [tile.caption for tile in shown] == [*CAPTIONS, "true height", "predicted height"]
    ramp = shown[1].image
    amplitude, phase = pictures.amplitude_scale(ramp), pictures.phase_scale(ramp)
    assert [tile.scale for tile in shown[1:]] == [amplitude] * 2 + [phase] * 2 + [amplitude] * 2


def test_pictures_follow_what_the_preview_holds(session):
    session.shown = preview("image", (), "true label 3; predicted <3> (0.92)")
    panel = Panel(session, pump=False)
    assert [tile["caption"] for tile in panel.tiles.tiles] == list(CAPTIONS)
    assert panel.about.value == ""
    panel.push()
    (tile,) = panel.tiles.tiles
    assert (tile["caption"], tile["colours"]) == ("image", pictures.colours("grey"))
    assert panel.about.value == "task 0, as predicted at step 5: true label 3; predicted &lt;3&gt; (0.92)"
    said, session.shown = panel.about.value, None
    session.timeline.append(arrived(0))
    panel.push()
    assert panel.about.value == f"last picture: {said}"
    assert len(panel.tiles.tiles) == 1
    panel.close()


def test_chosen_pattern_survives_an_arrival(session):
    panel = Panel(session, pump=False)
    session.timeline.append(arrived(0))
    panel.push()
    panel.pattern.value = 0
    session.timeline.append(arrived(1))
    panel.push()
    assert panel.pattern.value == 0
    panel.close()


def test_theme_of_the_page_reaches_the_figure(session):
    panel = Panel(session, pump=False)
    panel.line.theme = "dark"
    panel.push()
    assert panel.figure.layout.font.color == "#d0d0d0"
    panel.close()


def test_one_panel_per_session_and_no_thread_left(session):
    panel = dashboard(session)
    assert dashboard(session) is panel
    panel.close()
    assert not session.at_its_end
    assert panel.line.closed
    again = dashboard(session)
    assert again is not panel
    again.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "rehearsal-kit-panel"]


def test_trouble_of_a_push_is_said_and_the_pump_goes_on(session, monkeypatch):
    calls = threading.Semaphore(0)
    facts_were_asked = SimpleNamespace(count=0)

    def break_once(task: int | None, *, trained: bool) -> None:
        facts_were_asked.count += 1
        calls.release()
        if facts_were_asked.count == 1:
            raise OSError("<gone>")

    monkeypatch.setattr(session, "preview", break_once)
    panel = dashboard(session)
    assert calls.acquire(timeout=10)
    assert calls.acquire(timeout=10)
    assert "&lt;gone&gt;" in panel.controls.said.value
    panel.close()


def test_a_rank_that_does_not_answer_holds_up_no_push_and_is_asked_once(session):
    asked, thaw = [], threading.Event()

    def preview(task: int | None, *, trained: bool) -> Preview | None:
        asked.append((task, trained))
        assert thaw.wait(10)
        return session.shown

    session.preview = preview
    panel = Panel(session, pump=False)
    began = time.monotonic()
    for state in ("running", "paused", "recovering"):
        session.state = state
        panel.push()
        assert panel.line.state == state
    assert time.monotonic() - began < 5
    assert asked == [(None, False)]
    assert panel.about.value == ""
    thaw.set()
    deadline = time.monotonic() + 10
    while not panel.about.value:
        assert time.monotonic() < deadline
        panel.push()
    assert panel.about.value == "task 0, as predicted at step 5"
    assert asked == [(None, False)]  # the answer came late, and is not thrown away
    panel.close()


def test_a_late_answer_about_another_task_is_not_shown():
    thaw = threading.Event()

    def ask(wanted):
        assert wanted != (0, False) or thaw.wait(10)
        return preview(f"{wanted}", ())

    asked = AskedPreview(ask)
    late = asked.answer((0, False))
    assert not late.done()
    thaw.set()
    late.result(10)
    for wanted in ((1, False), (1, True)):
        assert asked.answer(wanted).result(10).name == f"{wanted}"
        assert not asked.waits


def shows(box, widget):
    return box is widget or any(shows(child, widget) for child in getattr(box, "children", ()))


def test_where_an_average_is_kept_a_person_chooses_whose_prediction_is_shown(session):
    asked = []

    def by(task: int | None, *, trained: bool) -> Preview | None:
        asked.append((task, trained))
        return replace(session.shown, trained=trained)

    session.training, session.preview = Training(average=0.9), by
    panel = Panel(session, pump=False)
    assert shows(panel.box, panel.weights)
    for trained, whose in ((False, "the average of the weights"), (True, "the weights in training")):
        panel.weights.value = trained
        panel.push()
        assert panel.about.value == f"task 0, as predicted at step 5 by {whose}"
    assert asked == [(None, False), (None, True)]
    panel.close()
    assert panel.weights.disabled


def test_where_none_is_kept_there_is_no_such_choice(session):
    panel = Panel(session, pump=False)
    assert shows(panel.box, panel.pattern)
    assert not shows(panel.box, panel.weights)
    panel.push()
    assert panel.about.value == "task 0, as predicted at step 5"
    panel.close()


def taken(number: int, *, step: int, error: float | None = None, branch: int = 0) -> list[object]:
    return [
        CheckpointTaken(step=step, checkpoint=number, weights="w", time=0.0, branch=branch),
        CheckpointKept(checkpoint=number, bytes=9, seconds=0.1, error=error),
    ]


def tell(session: StandIn, *records: object) -> None:
    for record in records:
        session.timeline.append(record)


def rolled_back() -> list[object]:
    """Four steps, of which the last two were taken back and done otherwise."""
    return [
        arrived(0), arrived(1), TaskBegan(step=0, task=0, steps=4, time=0.0), steps(0, 0, (4.0, 3.0)),
        *taken(1, step=2, error=0.5), steps(2, 0, (9.0, 8.0)),
        BranchBegan(branch=1, step=2, checkpoint=1, parent=0, left=4, time=0.0),
        Steps(**{**vars(steps(2, 0, (2.0,))), "branch": 1}),
    ]  # fmt: skip


def click(button) -> None:
    button.value = not button.value


def test_every_setting_has_a_knob_and_each_change_is_one_wish(session):
    controls = Controls(session)
    wanted = {"policy": "reservoir", "batch": 8, "candidates": 3, "distillation": 16}
    for name, value in wanted.items():
        controls.setting_controls[name].value = value
    assert session.asked == [{name: value} for name, value in wanted.items()]


def test_weights_appear_with_the_strategies_that_have_them_and_a_refusal_is_said(session):
    controls = Controls(session)
    assert (
        controls.setting_controls["alpha"].layout.display
        == controls.setting_controls["beta"].layout.display
        == "none"
    )
    controls.setting_controls["strategy"].value = "DERpp"
    assert session.asked == [{"strategy": DERpp()}]
    assert controls.setting_controls["alpha"].layout.display is None
    assert "strategy DERpp, alpha 0.5, beta 1, draws 1</b> &rarr; not yet in force" in controls.said.value
    tell(session, applied(1, settings={"strategy": "ER"}, refused="distillation is <0>"))
    controls.refresh()
    assert controls.setting_controls["strategy"].value == "ER"
    assert controls.setting_controls["beta"].layout.display == "none"
    assert "refused by all ranks: distillation is &lt;0&gt;" in controls.said.value
    tell(session, applied(0, settings={"strategy": "DER", "alpha": 0.25}))
    controls.refresh()
    assert (controls.setting_controls["strategy"].value, controls.setting_controls["alpha"].value) == (
        "DER",
        0.25,
    )
    controls.setting_controls["alpha"].value = 0.75
    assert session.asked[1:] == [{"alpha": 0.75}]


def test_an_own_strategy_is_shown_by_its_name(session):
    class Mine(ER):
        pass

    session.strategy = Mine()
    assert Controls(session).setting_controls["strategy"].value == "Mine"


def test_buttons_for_tasks_evaluations_and_checkpoints(session):
    controls = Controls(session)
    assert controls.run_controls.finish.disabled
    assert controls.run_controls.finish.tooltip == "no task is under way"
    tell(session, arrived(0), TaskBegan(step=0, task=0, steps=9, time=0.0))
    controls.refresh()
    assert not controls.run_controls.finish.disabled
    for button in (
        controls.run_controls.finish,
        controls.run_controls.evaluate,
        controls.run_controls.checkpoint,
    ):
        click(button)
    controls.run_controls.note.value = "the <beam> is weak"
    assert controls.run_controls.note.value == ""
    assert session.asked == ["finish task", "evaluate", "checkpoint", ("note", "the <beam> is weak")]
    tell(session, applied(2, kind="Evaluate"))
    controls.refresh()
    assert "evaluate now</b> &rarr; done at step 7 on 1 of 2 ranks" in controls.said.value
    assert "finish this task</b> &rarr; not yet in force" in controls.said.value


def test_waiting_tasks_are_skipped_and_trained_next(session):
    controls = Controls(session)
    assert controls.run_controls.skip.disabled
    tell(session, *(arrived(number, f"<{number}>") for number in range(3)))
    tell(session, TaskBegan(step=0, task=0, steps=9, time=0.0))
    controls.refresh()
    assert controls.run_controls.waiting.options == (("1 <1>", 1), ("2 <2>", 2))
    controls.run_controls.waiting.value = 2
    click(controls.run_controls.next)
    click(controls.run_controls.skip)
    assert session.asked == [("reorder", 2), ("skip", 2)]
    assert "task 2 &lt;2&gt; next" in controls.said.value
    tell(session, TaskSetAside(step=1, name="<2>", path="/p", reason="skipped"))
    controls.refresh()
    assert controls.run_controls.waiting.options == (("1 <1>", 1),)


def test_rolling_back_asks_again_and_for_the_same_checkpoint(session, clock):
    controls = Controls(session, clock=clock)
    run_controls = controls.run_controls
    assert run_controls.roll_back.disabled
    assert run_controls.checkpoints.value == NONE
    tell(session, *taken(6, step=90), *taken(7, step=120, error=0.2149))
    controls.refresh()
    assert run_controls.checkpoints.options == (("#7 step 120, error 0.21", 7), ("#6 step 90", 6))
    assert run_controls.checkpoints.value == 7
    click(run_controls.roll_back)
    assert run_controls.roll_back.description == "Confirm: back to #7"
    clock.now += 1
    run_controls.checkpoints.value = 6
    assert run_controls.roll_back.description == "Roll back"
    click(run_controls.roll_back)
    assert run_controls.roll_back.description == "Confirm: back to #6"
    assert session.asked == []
    clock.now += 6
    controls.refresh()
    assert run_controls.roll_back.description == "Roll back"
    click(run_controls.roll_back)
    clock.now += 1
    click(run_controls.roll_back)
    assert session.asked == [("roll back", 6)]
    tell(session, BranchBegan(branch=1, step=90, checkpoint=6, parent=0, left=121, time=0.0))
    tell(session, *taken(8, step=95, branch=1))
    controls.refresh()
    assert run_controls.checkpoints.options[0] == ("#8 branch 1 step 95", 8)
    assert run_controls.checkpoints.value == 6


def test_who_watches_can_touch_nothing_and_is_told_how_to_take_over(session):
    session.leads = False
    panel = Panel(session, pump=False)
    tell(session, *rolled_back())
    panel.push()
    controls = panel.controls
    used = (
        controls.start,
        controls.pause,
        controls.stop,
        *controls.setting_controls.widgets.values(),
        *controls.run_controls.all,
    )
    assert all(widget.disabled for widget in used)
    assert {widget.tooltip for widget in used} == {"another kernel steers this run"}
    assert "rk.attach(&#x27;/runs/&lt;today&gt;&#x27;, take=True)" in panel.banner.value
    assert panel.banner.layout.display is None
    session.leads = True
    panel.push()
    assert not controls.pause.disabled
    assert (panel.banner.value, panel.banner.layout.display) == ("", "none")
    panel.close()


def test_a_wish_that_was_not_accepted_is_said_and_answers_to_other_kernels_are_not_ours(session):
    """The ranks never hear of it, so no answer of theirs will come."""
    controls = Controls(session)
    controls.setting_controls.widgets["representatives"].value = 12
    tell(session, applied(1, holder="another kernel"))
    controls.refresh()
    assert "not yet in force" in controls.said.value
    session.refused = "not accepted: Steer (no. 1). Another kernel steers this run"
    tell(session, applied(2, holder="another kernel", settings={"representatives": 20}))
    controls.refresh()
    assert "not accepted: Steer (no. 1)" in controls.said.value
    assert controls.setting_controls.widgets["representatives"].value == 20  # it follows again


def test_what_was_asked_before_the_run_moved_to_the_next_job_stays_answered(session):
    """The kernel has another name there."""
    controls = Controls(session)
    controls.setting_controls.widgets["representatives"].value = 12
    tell(session, *[applied(1, rank=rank, settings={"representatives": 12}) for rank in range(2)])
    session.holders = ("", "the same kernel in the next job")
    controls.refresh()
    assert "in force from step 7 on all 2 ranks" in controls.said.value
    tell(session, applied(0, settings={"representatives": 16}))  # the run was rolled back
    controls.refresh()
    assert controls.setting_controls.widgets["representatives"].value == 16


def test_the_banner_tells_what_is_wrong_as_long_as_it_is():
    timeline = Timeline([GenerationBegan(generation=0, workers=("a", "b"), time=0.0)])
    assert banner(timeline, state="running") == ""
    timeline.append(Stalled(rank=1, seconds=34.2, time=0.0))
    assert "stalled: rank 1, 34 s without progress" in banner(timeline, state="running")
    timeline.append(GenerationEnded(generation=0, reason="rank 1 is <stuck>", time=0.0))
    told = banner(timeline, state="recovering")
    assert "recovering: rank 1 is &lt;stuck&gt;" in told
    assert "stalled" not in told
    timeline.append(GenerationBegan(generation=1, workers=("a", "b"), time=0.0))
    assert banner(timeline, state="running") == ""
    timeline.append(CheckpointFailed(checkpoint=5, reason="<disk> full"))
    assert "checkpoint 5 could not be written or used: &lt;disk&gt; full" in banner(timeline, state="running")
    timeline.append(CheckpointKept(checkpoint=6, bytes=1, seconds=0.1, error=None))
    assert banner(timeline, state="running") == ""


def test_the_banner_tells_that_a_run_goes_on_with_fewer_workers_and_since_when():
    def began(generation, *workers, at):
        return GenerationBegan(generation=generation, workers=workers, time=at * 3600.0, of=2)

    timeline = Timeline([began(1, "a", "b", at=1), began(2, "a", at=2), began(3, "a", at=3)])
    assert banner(timeline, state="recovering").count("goes on with") == 0
    since = time.strftime("%H:%M", time.localtime(2 * 3600))
    for state in ("running", "waiting", "paused"):
        told = banner(timeline, state=state)
        assert f"goes on with 1 of 2 workers since {since}; what comes back is taken at the next" in told
    assert banner(timeline, state="finished") == ""
    timeline.append(began(4, "a", "c", at=4))
    assert banner(timeline, state="running") == ""


def test_a_rolled_back_run_shows_its_newest_branch_and_the_others_faintly(session):
    panel = Panel(session, pump=False)
    before = panel.figure
    tell(session, *rolled_back()[:-2])
    panel.push()
    assert panel.figure is before
    assert panel.figure.data[0].y[:4].tolist() == [4, 3, 9, 8]
    tell(session, *rolled_back()[-2:])
    panel.push()
    assert panel.figure is not before
    assert panel._plots.children == (panel.figure,)
    assert panel.figure.data[0].y[:3].tolist() == [4, 3, 2]
    left = panel.figure.data[-1]
    assert (left.name, left.line.dash, left.showlegend) == ("branch 0", "dash", True)
    assert (left.x.tolist(), left.y.tolist()) == ([2, 3], [9, 8])
    assert [trace.name for trace in panel.figure.data if trace.showlegend] == ["branch 0"]
    told = dict(panel.line.facts)
    assert (told["step"], told["branch"], told["backlog"]) == ("3", "1", "1 task waits, under a minute")
    panel.close()


def test_a_run_without_branches_has_no_legend():
    assert left_curves(Timeline([steps(0, 0, (1.0,))])) == {}
    figure = live_figure()
    assert not figure.layout.showlegend
    assert "branch" not in dict(facts(Timeline(), state="running", ranks=1))


def test_a_skipped_task_keeps_its_number_in_the_list():
    aside = TaskSetAside(step=0, name="scan", path="/p", reason="skipped by a person")
    html = tasks_html(Timeline([arrived(0, "scan"), aside]))
    assert html.count("scan") == 1
    assert "0 scan" in html
    assert "skipped by a person" in html
