"""What every session does for who holds it: letting go."""

from __future__ import annotations

import pytest
from played_line import Line, session_on

from rehearsal_kit.record.rank_records import RunOver
from rehearsal_kit.widgets.panel import dashboard

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
