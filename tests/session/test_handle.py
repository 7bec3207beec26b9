"""What every session does for who holds it: waiting, letting go, and tensors that are refused."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from played_line import Line, session_on
from runkit import until

from rehearsal_kit.base.errors import RankError, SessionError, SettingsError, TaskError
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.record.rank_records import GenerationBegan, RunOver
from rehearsal_kit.record.records import StateChanged, TaskSetAside
from rehearsal_kit.session import steering
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


@pytest.mark.parametrize("kind", [pd.DataFrame, np.ones, torch.ones])
def test_until_says_what_it_must_be_given_where_a_value_is_neither_true_nor_false(session, kind):
    with pytest.raises(SettingsError, match=r"returned a (DataFrame|ndarray|Tensor), .*; return True"):
        session.until(lambda _: kind([2]) if kind is pd.DataFrame else kind(2), timeout=5)


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


def test_what_fails_at_the_close_keeps_nobody_from_hearing_of_it(line, session, caplog):
    called = []
    session.on_close(lambda: called.append(session.state))
    session.on_close(lambda: 1 / 0)
    session.leave()
    assert called == ["left"]
    assert "ZeroDivisionError" in caplog.text


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


def test_a_connection_that_attach_has_made_is_closed_by_who_leaves_the_run_to_others(line, session):
    """It kept the cluster from idling as long as the kernel lived."""
    session.leave()
    assert session.state == "left"
    assert not line.is_open


def test_who_ends_a_run_keeps_the_connection_to_end_the_cluster_too(line, session):
    line.record(STOPPED)
    session.close()
    assert session.state == "stopped"
    assert line.is_open


def test_after_it_has_left_a_session_refuses_every_command_in_words(line, session):
    session.leave()
    for command in (session.pause, session.stop, session.reopen, lambda: session.submit("scan.cxi")):
        with pytest.raises(SessionError, match=r"came too late: this session has left its run; rk\.attach\("):
            command()
    assert not line.posted


# Tensors of tasks ---------------------------------------------------------------------------------------


def tensors_of(session):
    return sorted(path.name for path in session.run.tasks.glob("*"))


def own_task():
    data = torch.zeros(80, 6), torch.arange(80) % 2
    return split_classes(*data, classes_per_task=2, test=data)[0]


def test_a_run_that_ends_while_its_tensors_are_written_keeps_none_of_them(line, session, monkeypatch):
    session.submit(own_task())
    until(lambda: line.posted)

    def written(task, path):
        line.record(STOPPED)
        return write_task(task, path)

    monkeypatch.setattr(steering, "write_task", written)
    with pytest.raises(SessionError, match="Arrived came too late: this run is stopped"):
        session.submit(own_task())
    session.close()
    assert tensors_of(session) == ["0000.h5"]


def test_tensors_whose_wish_is_refused_are_removed_but_none_that_an_accepted_wish_names(line, session):
    accepted = []

    def post(topic, wishes, *, holder):
        """The first one is written down, and its answer lost."""
        with session.run.wishes.open("a") as ledger:
            ledger.writelines(f"{wish}\n" for wish in wishes[: not accepted])
        accepted.extend(wishes)
        return "not accepted: it came too late."

    line.post_wishes = post
    session.submit(own_task())
    session.until(lambda session: session.refused, timeout=20)
    assert tensors_of(session) == ["0000.h5"]
    session.submit(own_task())
    session.submit(session.run.tasks / "0000.h5")  # once more
    until(lambda: len(accepted) == 3)
    session.leave()
    assert tensors_of(session) == ["0000.h5"]
