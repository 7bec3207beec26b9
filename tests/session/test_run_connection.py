"""The kernel's end of the line to a run, on a line that is only played: what it says when things go wrong."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from played_line import TOPIC, Line
from runkit import job_in, order_for

from rehearsal_kit.base.errors import LeaseError, SessionError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.cluster.protocol import RunOrder
from rehearsal_kit.rank.run_spec import keep_spec
from rehearsal_kit.record.commands import Note, Stop, Wish
from rehearsal_kit.record.lease import RunLease
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, RunOver
from rehearsal_kit.record.records import Applied, StateChanged, to_plain
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.session import attach
from rehearsal_kit.session.run_connection import RunConnection


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run").create()


@pytest.fixture
def driver_on(run):
    """Makes drivers and lets go of them in the end."""
    made = []

    def make(line):
        run_connection = RunConnection(SimpleNamespace(client=line, has_ended=False), run)
        run_connection.history.catch_up()
        made.append(run_connection)
        return run_connection

    yield make
    for run_connection in made:
        run_connection.close(None)
        assert not [thread for thread in threading.enumerate() if thread.name == "session"]


def ran_before(run, *generations, states=()):
    """Have the folder of a run say what happened when it was started earlier."""
    for path, records in ((run.generations, generations), (run.timeline, states)):
        path.write_text("".join(json.dumps(to_plain(record)) + "\n" for record in records))


def order(run):
    return RunOrder.of(order_for(run, TOPIC))


FIRST = GenerationBegan(generation=1, workers=("tls://w0",), time=0.0)
STOPPED = RunOver(outcome="stopped", error="", time=1.0)


def test_a_start_that_is_refused_is_told_at_once_whatever_the_run_came_to_before(driver_on, run):
    """It was said that the run had stopped, as it had before, and the refusal was told nobody."""
    ran_before(run, FIRST, STOPPED)
    run_connection = driver_on(Line(refused="this cluster trains for another run already."))
    began = time.monotonic()
    run_connection.start(order(run))
    assert run_connection.over.wait(10)
    assert run_connection.state == "failed"
    assert run_connection.error.startswith(
        "this cluster trains for another run already. Once that is mended, rk.resume("
    )
    assert time.monotonic() - began < 5


def test_a_cluster_that_is_lost_while_a_run_is_started_again_has_not_told_how_that_ended(driver_on, run):
    ran_before(run, FIRST, STOPPED)
    line = Line()
    line.begin_run = None  # not callable: whatever goes wrong here is no news of the run
    run_connection = driver_on(line)
    run_connection.start(order(run))
    assert run_connection.over.wait(10)
    assert run_connection.state == "failed"
    assert run_connection.error.startswith("TypeError: ")


def test_what_is_told_of_a_run_that_was_started_again_is_not_what_was_told_before(driver_on, run):
    """wait() raised the trouble for which it had paused the last time."""
    paused = StateChanged(step=3, state="paused", reason="the loss is not finite")
    ran_before(run, FIRST, states=[paused])
    line = Line()
    run_connection = driver_on(line)
    run_connection.start(order(run))
    until(lambda: run_connection._state == "live")
    assert (run_connection.state, run_connection.trouble) == ("starting", "")
    told = [FIRST, GenerationEnded(generation=1, reason="x", time=1.0), paused]
    for record, state in zip(told, ("starting", "recovering", "paused"), strict=True):
        line.tell({"told": to_plain(record), "line": None})
        assert run_connection.state == state
    assert run_connection.trouble == "the loss is not finite"


def test_a_large_network_has_the_time_that_it_takes_to_send_it(driver_on, run):
    line = Line()
    run_connection = driver_on(line)
    run_connection.start(replace(order(run), spec=bytes(100 * 2**20)))
    until(lambda: "look_for" in line.deadlines)
    assert line.deadlines["begin_run"] > 100
    assert line.deadlines["look_for"] < 10


def test_a_wish_that_comes_too_late_is_refused_in_words(driver_on, run):
    line = Line()
    run_connection = driver_on(line)
    run_connection.start(order(run))
    until(lambda: run_connection._state == "live")
    line.found["outcome"] = "finished"
    line.tell({"told": to_plain(RunOver(outcome="finished", error="", time=1.0)), "line": None})
    run_connection.send(Wish(7, Note(text="x")))  # before its thread has noticed, or after
    until(lambda: run_connection.refused)
    assert "Note (no. 7)" in run_connection.refused
    assert "this run is finished" in run_connection.refused
    assert "rk.resume(" in run_connection.refused
    run_connection._thread.join(10)
    run_connection.send(Wish(8, Note(text="x")))
    assert "Note (no. 8)" in run_connection.refused
    assert not line.posted


def test_a_run_that_is_over_is_so_as_soon_as_somebody_attaches_to_it(driver_on, run):
    """For a second its wishes were refused because another kernel steered it, which was not so."""
    ran_before(run, FIRST, RunOver(outcome="failed", error="rank 1: it broke", time=1.0))
    line = Line()
    line.found["outcome"], line.ask_lease = "failed", lambda topic, holder, *, take: False
    run_connection = driver_on(line)
    run_connection.attach(take=True)
    assert run_connection.over.is_set()
    assert (run_connection.state, run_connection.error) == ("failed", "rank 1: it broke")


def test_a_wish_that_nobody_answers_is_said_to_be_in_doubt(driver_on, run):
    line = Line()
    line.post_wishes = broken
    run_connection = driver_on(line)
    run_connection.start(order(run))
    until(lambda: run_connection._state == "live")
    run_connection.send(Wish(7, Note(text="x")))
    assert run_connection.over.wait(20)
    until(lambda: run_connection.refused)
    assert "not answered: Note (no. 7)" in run_connection.refused
    assert "rk.attach(" in run_connection.refused
    assert "cannot be reached" in run_connection.error


def test_a_last_checkpoint_may_take_longer_than_ranks_that_do_not_stop(driver_on, run, monkeypatch):
    monkeypatch.setattr("rehearsal_kit.session.run_connection.CLOSE_TIMEOUT_S", 0.5)
    stop = Wish(1, Stop())
    for obeyed, outcome in ((True, "stopped"), (False, "failed")):
        line = Line()
        run_connection = driver_on(line)
        run_connection.start(order(run))
        until(lambda run_connection=run_connection: run_connection._state == "live")
        run_connection.send(stop)
        if obeyed:
            line.tell({"told": to_plain(applied(stop, run_connection.holders[-1])), "line": None})
        over = {"told": to_plain(STOPPED), "line": None}
        threading.Timer(1.5, line.tell, [over]).start()
        run_connection.close(stop)
        assert run_connection.state == outcome
        until(lambda line=line: not [t for t in threading.enumerate() if isinstance(t, threading.Timer)])


def test_files_that_cannot_be_read_for_a_moment_end_no_session(driver_on, run, monkeypatch, caplog):
    def away():
        raise OSError(116, "Stale file handle")

    line = Line()
    run_connection = driver_on(line)
    monkeypatch.setattr(run_connection.history, "catch_up", away)
    run_connection.start(order(run))
    until(lambda: "Stale file handle" in caplog.text)
    line.tell({"told": to_plain(FIRST), "line": None})
    assert run_connection.timeline.last(GenerationBegan) == FIRST
    assert not run_connection.over.is_set()


def applied(wish, holder):
    return Applied(
        rank=0, number=wish.number, kind="Stop", step=3, settings={}, digest="", refused="", holder=holder
    )


def test_an_attach_that_fails_half_way_leaves_no_connection_behind(tmp_path, monkeypatch):
    spec = job_in(tmp_path / "run")
    keep_spec(spec, ranks=1)
    write_private(spec.run.cluster, json.dumps({"folder": str(tmp_path / "cluster")}))
    ends, line = [], Line()
    cluster = SimpleNamespace(client=line, disconnect=lambda: ends.append(line))
    monkeypatch.setattr(attach, "reach", lambda place: cluster)
    line.found = None
    with pytest.raises(SessionError, match=r"no run of .* is under way on this cluster; rk\.resume\("):
        attach.attach(spec.run.path)
    assert ends == [line]
    line.look_for = silent
    lease = RunLease.take(spec.run, place={"folder": "/clusters/ab12cd34"})
    with pytest.raises(LeaseError, match="under way on cluster ab12cd34"):
        attach.attach(spec.run.path, take=True)
    assert ends == [line, line]
    lease.release()


def broken(*_, **__):
    raise OSError("broken")


def silent(*_, **__):
    raise TimeoutError


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
