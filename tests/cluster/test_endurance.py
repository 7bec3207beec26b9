"""Many faults at random moments from a fixed seed, and the rarer ones; prints what was measured (-s).

A few of each are in test_faults.py, for CI. The long versions, one command each, minutes to hours:

    python -m pytest -s -m endurance tests/cluster/test_endurance.py -k kills
    python -m pytest -s -m endurance tests/cluster/test_endurance.py -k soak
    python -m pytest -s -m endurance tests/cluster/test_endurance.py -k "not kills and not soak"

REHEARSAL_KIT_ENDURANCE=10 makes a tenth of the kills and of the generations.
"""

from __future__ import annotations

import os
import signal
import threading

import pytest
from endurance import soak, survive_kills
from faultkit import (
    DEADLINE_S,
    SLOW,
    TASKS,
    Expected,
    Fault,
    gone,
    require_ledgers,
    require_whole,
    session_on,
    shared_cluster,
    until,
    wait_for,
)

from rehearsal_kit.base.errors import RankError
from rehearsal_kit.base.settings import Recovery, Rehearsal
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, Stalled
from rehearsal_kit.record.records import CheckpointKept, Noted, Steps, TaskEnded
from rehearsal_kit.session.attach import resume
from rehearsal_kit.widgets.status import banner, straggler

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(7200)]
PART = int(os.environ.get("REHEARSAL_KIT_ENDURANCE", "1"))
KILLS = {2: 100, 4: 100}
GENERATIONS = 200


@pytest.fixture(scope="module")
def cluster():
    with shared_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected(cluster, tmp_path_factory):
    return Expected.of(cluster, tmp_path_factory.mktemp("expected") / "run")


# Kills at random moments --------------------------------------------------------------------------------


@pytest.mark.endurance
@pytest.mark.parametrize("workers", sorted(KILLS))
def test_a_hundred_kills_at_random_moments(workers, tmp_path):
    """The same, many times, with 2 and with 4 workers."""
    with shared_cluster(workers) as cluster:
        expected = Expected.of(cluster, tmp_path / "expected")
        survive_kills(cluster, expected, tmp_path, kills=KILLS[workers] // PART)


# Soak ---------------------------------------------------------------------------------------------------


@pytest.mark.endurance
def test_a_soak_of_two_hundred_generations(tmp_path):
    """The same, many times."""
    with shared_cluster() as cluster:
        expected = Expected.of(cluster, tmp_path / "expected")
        soak(cluster, expected, tmp_path, generations=GENERATIONS // PART)


# The rarer ones -----------------------------------------------------------------------------------------


@pytest.mark.endurance
def test_the_same_exception_every_time(cluster, tmp_path):
    """Number 2: the ranks are started again as often as was allowed, and not for ever."""
    fault = Fault(kind="raise", marker=str(tmp_path / "marker"), forward=50, again=True)
    recovery = Recovery(checkpoint_s=1000, stall_s=5, wait_s=60, restarts=2)
    with session_on(cluster, tmp_path / "run", fault, recovery=recovery) as session:
        session.start()
        with pytest.raises(RankError, match=r"(?s)rank 1: PlannedError: .*started again 2 times"):
            session.wait(DEADLINE_S)
        assert len(session.timeline.records(GenerationEnded)) == 3
        require_ledgers(session.run)


@pytest.mark.endurance
@pytest.mark.parametrize("kind", ["exit", "crash"])
def test_a_process_that_ends_by_itself(cluster, expected, tmp_path, kind):
    """Number 4: os._exit(0), and a segmentation fault."""
    fault = Fault(kind=kind, marker=str(tmp_path / "marker"), forward=50)
    with session_on(cluster, tmp_path / "run", fault) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="the worker of rank 1 is gone")


@pytest.mark.endurance
def test_a_worker_that_never_comes_back(tmp_path):
    """Numbers 5 and 14: it is waited for, then the run fails in words, and goes on with the one that is left.

    From there on its steps are others: one rank takes all samples, each of them once an epoch.
    """
    with shared_cluster(check=False) as cluster:
        recovery = Recovery(checkpoint_s=0.3, stall_s=5, wait_s=3, restarts=0)
        with session_on(cluster, tmp_path / "run", recovery=recovery) as session:
            session.start()
            until(session, lambda timeline: timeline.records(CheckpointKept))
            lost = sorted(cluster.client.scheduler_info(n_workers=-1)["workers"])[0]
            cluster.client.retire_workers([lost], close_workers=True, remove=True)
            with pytest.raises(RankError, match=r"rank|worker"):
                session.wait(DEADLINE_S)
            network = session._network
        with resume(session.run.path, cluster, network=network) as again:
            assert again.wait(DEADLINE_S) == "finished"
            steps, _ = again.timeline.losses()
            assert steps == list(range(len(steps)))
            assert [t.task for t in again.timeline.records(TaskEnded)] == list(range(TASKS))
            require_ledgers(again.run)


@pytest.mark.endurance
@pytest.mark.parametrize("delay", [0.0, 2.0], ids=["before it joins", "while the other waits"])
def test_a_rank_killed_before_they_have_met(cluster, expected, tmp_path, delay):
    """Number 10: nobody is left half started."""
    fault = Fault(kind="kill", marker=str(tmp_path / "marker"), forward=-1, seconds=delay)
    with session_on(cluster, tmp_path / "run", fault) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="the worker of rank . (is gone|does not answer)")


@pytest.mark.endurance
def test_a_rank_that_holds_the_interpreter(cluster, expected, tmp_path):
    """Number 7: people are told which one; nothing is started again, and it goes on by itself."""
    fault = Fault(kind="hold", marker=str(tmp_path / "marker"), forward=50, seconds=15)
    recovery = Recovery(checkpoint_s=0.3, stall_s=60, wait_s=60)
    with session_on(cluster, tmp_path / "run", fault, recovery=recovery) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)
    stalled, on_again = session.timeline.records(Stalled)
    assert stalled.rank == 1
    assert stalled.seconds > 10
    assert on_again.seconds == 0


@pytest.mark.endurance
def test_an_interrupt_ends_the_waiting_only(cluster, expected, tmp_path):
    """Number 22."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: timeline.records(Steps))
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            session.wait(DEADLINE_S)
        timer.join()
        assert session.state == "running"
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)


@pytest.mark.endurance
def test_a_scheduler_that_is_killed(cluster, expected, tmp_path):
    """Number 23: its workers end, people hear of it, and the run goes on elsewhere to the same weights."""
    with shared_cluster(check=False) as lost:
        family = [process.pid for process in lost.processes()[1:]]
        with session_on(lost, tmp_path / "run") as session:
            session.start()
            until(session, lambda timeline: timeline.records(CheckpointKept))
            os.kill(family[0], signal.SIGKILL)
            wait_for(lambda: session.over, timeout_s=10 * SLOW)
            assert "the cluster has ended" in session.error
            network = session._network
        wait_for(lambda: all(map(gone, family)), timeout_s=20 * SLOW)
    with resume(tmp_path / "run", cluster, network=network) as again:
        assert again.wait(DEADLINE_S) == "finished"
        steps, losses = again.timeline.losses()
        assert (steps, losses) == (list(range(expected.steps)), expected.losses)
        require_ledgers(again.run)


@pytest.mark.endurance
def test_a_connection_that_breaks(cluster, expected, tmp_path):
    """Number 24: the kernel hears the rest, without gaps and without repeats, and steers again."""
    with session_on(cluster, tmp_path / "run", nap_s=0.02) as session:
        session.start()
        until(session, lambda timeline: timeline.records(Steps))
        client = cluster.client
        client.loop.add_callback(client.scheduler_comm.comm.abort)
        wait_for(lambda: client.status != "running")
        wait_for(lambda: client.status == "running")
        number = session.note("here again")
        until(session, lambda timeline: timeline.records(Noted))
        assert session.leads, session.refused
        assert session.wait(DEADLINE_S) == "finished"
        assert session.acknowledged(number)
        require_whole(session, expected, restarts=0)


@pytest.mark.endurance
def test_a_flood_of_events(cluster, expected, tmp_path):
    """Number 25: what others tell by the thousand harms neither the weights nor the curve."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: timeline.records(Steps))
        sent = 0
        while not session.over:
            cluster.client.run(flood)
            sent += 2000
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)
    print(f"\nevents beside the run: {sent}")


def flood(dask_worker):
    for number in range(1000):
        dask_worker.log_event("somebody else", {"number": number})


@pytest.mark.endurance
def test_a_rank_killed_between_unequal_shares(cluster, tmp_path):
    """Number 28: tasks of 321, 3 and 1 samples; at the end one rank has none to train on."""
    sizes = (321, 3, 1)
    with session_on(cluster, tmp_path / "whole", sizes=sizes) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        losses = session.timeline.losses()
    fault = Fault(kind="kill", marker=str(tmp_path / "marker"), forward=80)
    with session_on(cluster, tmp_path / "run", fault, sizes=sizes) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, None, restarts=1, reason="rank 1|rank 0")
        assert session.timeline.losses() == losses


@pytest.mark.endurance
def test_a_rank_that_is_slow(cluster, expected, tmp_path):
    """Number 8: it is named, and nothing else happens."""
    slow = Fault(kind="sleep", marker=str(tmp_path / "marker"), forward=0, seconds=0.02, again=True)
    with session_on(cluster, tmp_path / "run", slow, nap_s=0.004) as session:
        session.start()
        until(session, straggler)
        assert straggler(session.timeline)[0] == 1
        assert "rank 1 computes" in banner(session.timeline, state="running")
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)


@pytest.mark.endurance
def test_buffers_that_do_not_fit(cluster, tmp_path):
    """Number 26: refused before they are made, by a message that names memory, and not tried again."""
    rehearsal = Rehearsal(representatives=4, distillation=4, capacity="900 GiB")
    with session_on(cluster, tmp_path / "run", rehearsal=rehearsal) as session:
        session.start()
        with pytest.raises(RankError, match=r"would take 900.00 GiB, but only"):
            session.wait(DEADLINE_S)
        assert len(session.timeline.records(GenerationBegan)) == 1


@pytest.mark.endurance
def test_the_end_of_an_allocation(cluster, expected, tmp_path):
    """Number 27: SIGTERM to the cluster stops the run with a checkpoint, from which it goes on elsewhere."""
    with shared_cluster(check=False) as ending:
        server = ending.processes()[1].pid
        with session_on(ending, tmp_path / "run") as session:
            session.start()
            until(session, lambda timeline: len(timeline.records(Steps)) > 3)
            os.kill(server, signal.SIGTERM)
            wait_for(lambda: session.over, timeout_s=20 * SLOW)
            network = session._network
    ledger = [entry["kind"] for entry in read_ledger(session.run.effects)]
    assert ledger[-2:] == ["Stop", "TakeCheckpoint"]
    with resume(tmp_path / "run", cluster, network=network) as again:
        assert again.wait(DEADLINE_S) == "finished"
        steps, losses = again.timeline.losses()
        assert (steps, losses) == (list(range(expected.steps)), expected.losses)
        assert len(again.timeline.records(TaskEnded)) == TASKS
