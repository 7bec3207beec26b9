"""What every session does for who holds it: waiting and letting go."""

from __future__ import annotations

import re
import threading
import time

import pytest
from played_line import Line, session_on

from rehearsal_kit.base.errors import RankError, SessionError, TaskError
from rehearsal_kit.record.rank_records import GenerationBegan, RunOver
from rehearsal_kit.record.records import StateChanged, TaskSetAside
from rehearsal_kit.widgets.panel import dashboard

BEGAN = GenerationBegan(generation=1, workers=("tls://w0",), time=0.0)
STOPPED = RunOver(outcome="stopped", error="", time=1.0)


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def session(line, tmp_path):
    """Attached to a run that goes on; left in the end."""
    session = session_on(line, tmp_path / "run")
    yield session
    session.leave()


# Waiting ------------------------------------------------------------------------------------------------


def test_until_returns_what_came_as_soon_as_it_is_told(line, session):
    threading.Timer(0.3, line.record, [BEGAN]).start()
    began = time.monotonic()
    assert session.until(lambda session: session.timeline.last(GenerationBegan), timeout=20) == BEGAN
    assert time.monotonic() - began < 0.9  # sooner than a look each second
    assert session.until(lambda session: session.timeline.last(GenerationBegan), timeout=0) == BEGAN


def test_until_gives_up_in_time_and_says_what_the_run_is_doing(line, session):
    asked = []
    line.record(StateChanged(step=0, state="waiting", reason=""))
    with pytest.raises(TimeoutError, match=r"not in 1\.5 s; the run is waiting, and it goes on"):
        session.until(asked.append, timeout=1.5)
    assert 2 <= len(asked) <= 4  # no busy wait


@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        ([RunOver(outcome="failed", error="rank 1: it broke", time=1.0)], RankError, "rank 1: it broke"),
        ([RunOver(outcome="stopped", error="", time=1.0)], SessionError, "run is stopped, and what was"),
        (
            [
                TaskSetAside(step=0, name="bad", path="/p", reason="no scan"),
                RunOver(outcome="finished", error="", time=1.0),
            ],
            TaskError,
            "nothing was trained: 1 task was set aside: bad: no scan",
        ),
        ([StateChanged(step=3, state="paused", reason="the loss became NaN")], RankError, "became NaN"),
    ],
    ids=["failed", "ended", "nothing trained", "trouble"],
)
def test_until_raises_where_it_would_wait_for_ever(line, session, told, error, words):
    for record in told:
        line.record(record)
    with pytest.raises(error, match=words):
        session.until(lambda _: False, timeout=20)
    assert session.until(lambda session: session.state, timeout=0)  # what is true is no matter of the end


def test_until_goes_on_after_a_trouble_that_was_answered(line, session):
    line.record(StateChanged(step=3, state="paused", reason="the loss became NaN"))
    session.resume()
    with pytest.raises(TimeoutError):
        session.until(lambda _: False, timeout=0.1)


def test_until_says_that_a_wish_was_not_accepted(line, session):
    line.post_wishes = lambda *_, holder: "not accepted: Pause (no. 1)."
    session.pause()
    with pytest.raises(SessionError, match=re.escape("not accepted: Pause (no. 1).")):
        session.until(lambda _: False, timeout=20)
    with pytest.raises(TimeoutError):  # once
        session.until(lambda _: False, timeout=0.1)


# Letting go ---------------------------------------------------------------------------------------------


def test_who_asked_for_it_is_called_once_when_the_session_has_let_go(line, session):
    called = []
    session.on_close(lambda: called.append(session.state))
    session.on_close(lambda: called.append("never"))()
    line.record(STOPPED)
    session.close()
    session.leave()
    assert called == ["stopped"]


@pytest.mark.parametrize("let_go", ["close", "leave", "_discard"])
def test_the_dashboard_is_closed_last_and_shows_how_the_run_ended(line, session, let_go):
    panel = dashboard(session)
    assert dashboard(session) is panel
    if let_go == "close":
        line.record(STOPPED)
    getattr(session, let_go)()
    assert panel.line.closed
    assert panel.line.state == ("stopped" if let_go == "close" else "left")
    assert not panel._thread.is_alive()
    again = dashboard(session)  # what it was can still be looked at
    assert again is not panel
    again.close()
