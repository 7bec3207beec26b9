"""What goes wrong on real machines, done on purpose: the run ends with the weights of one that was spared.

Every case has a deadline and is looked at by `require_whole`. The numbers are those of the list of faults
that this project tests itself against. Clusters are detached from kernels, so number 20 (a kernel that takes
its cluster with it) cannot happen: the run goes on, and the cluster ends once nobody has used it for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from distributed import Worker
from endurance import survive_kills
from faultkit import (
    DEADLINE_S,
    SLOW,
    Expected,
    Fault,
    Frail,
    answered,
    gaps,
    gone,
    kernel,
    process_of,
    require_whole,
    require_whole_folder,
    session_on,
    shared_cluster,
    step_told,
    until,
    wait_for,
)

from rehearsal_kit.base.errors import (
    ClusterGoneError,
    LeaseError,
    RunFolderError,
    SessionError,
    SettingsError,
)
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.cluster.cluster import tell_process
from rehearsal_kit.cluster.cluster_calls import ask_workers
from rehearsal_kit.cluster.scheduler_calls import look_for, post_wishes
from rehearsal_kit.cluster.workers import known_workers
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.record.commands import Stop, Wish
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, Joined
from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointFailed,
    CheckpointKept,
    Noted,
    Restored,
    Steps,
)
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.attach import attach, resume

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    with shared_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected(cluster, tmp_path_factory):
    return Expected.of(cluster, tmp_path_factory.mktemp("expected") / "run")


def spoil(path: Path, *, at: int | None) -> None:
    """Flip one byte of a file, or cut off its last bytes."""
    content = bytearray(path.read_bytes())
    if at is None:
        del content[-100:]
    else:
        content[at] ^= 1
    path.write_bytes(content)


def paused_with_checkpoint(session):
    """Pause, and keep all that the run is then; returns the checkpoints that are on disk."""
    answered(session, session.pause())
    answered(session, session.checkpoint())
    newest = len([e for e in read_ledger(session.run.effects) if e["kind"] == "TakeCheckpoint"])
    until(session, lambda timeline: newest in [k.checkpoint for k in timeline.records(CheckpointKept)])
    return find_checkpoints(session.run.checkpoints)


def test_an_exception_on_one_rank(cluster, expected, tmp_path):
    """Number 1: the rank is named with its error, no worker is restarted, and the others notice at once."""
    fault = Fault(kind="raise", marker=str(tmp_path / "marker"), rank=1, forward=70)
    with session_on(cluster, tmp_path / "run", fault) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="rank 1: PlannedError: planned at .*faultkit")
    joined, ended = session.timeline.records(Joined), session.timeline.records(GenerationEnded)
    assert len({each.process for each in joined}) == 2
    began = next(each.time for each in joined if each.generation == 2)
    assert began - ended[0].time < 2 * SLOW


def test_a_killed_rank_0_and_wishes_on_their_way(cluster, expected, tmp_path):
    """Numbers 3 and 9: what was asked just before and after is done once."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: timeline.records(CheckpointKept))
        before = [session.note(f"before {n}") for n in range(5)]
        os.kill(process_of(session, 0), signal.SIGKILL)
        after = [session.note(f"after {n}") for n in range(5)]
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="worker of rank 0 is gone: its process has ended")
    noted = [record.text for record in session.timeline.records(Noted)]
    assert noted == [f"{when} {n}" for when in ("before", "after") for n in range(5)]
    applied = [r.number for r in session.timeline.records(Applied) if r.rank == 0 and r.kind == "Note"]
    assert applied == before + after


@pytest.mark.parametrize(
    "awaited",
    [
        pytest.param(GenerationEnded, id="at once"),
        pytest.param(GenerationBegan, id="too late", marks=pytest.mark.endurance),
    ],
)
def test_a_frozen_rank_0_that_comes_to_life_again(cluster, expected, tmp_path, awaited):
    """Number 6: the progress watch ends the generation; what the frozen one does then changes nothing.

    Where it comes to life while the others are told to give up, it does so too, and its process goes on.
    """
    fault = Fault(kind="freeze", marker=str(tmp_path / "marker"), rank=0, forward=50)
    recovery = Recovery(checkpoint_s=0.3, stall_s=3, wait_s=60)
    with session_on(cluster, tmp_path / "run", fault, recovery=recovery) as session:
        session.start()
        process = process_of(session, 0)
        began = len(session.timeline.records(awaited))
        until(session, lambda timeline: len(timeline.records(awaited)) > began)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
        assert session.wait(DEADLINE_S) == "finished"
        reason = "rank 0 has made no progress for .* does not answer"
        require_whole(session, expected, restarts=1, reason=reason)
    assert gone(process) or awaited is GenerationEnded


def test_a_rank_killed_while_a_checkpoint_is_written(cluster, expected, tmp_path):
    """Number 11: the folder without its final name is as good as not there, and is removed."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: len(timeline.records(CheckpointKept)) == 2)
        process = process_of(session, 1)
        partial = wait_for(lambda: list(session.run.checkpoints.glob("*.g1.partial")))[0]
        os.kill(process, signal.SIGKILL)
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="rank 1")
    restored = session.timeline.last(Restored)
    assert 2 <= restored.checkpoint <= int(partial.name[:6])


def test_damaged_checkpoints_are_passed_over(cluster, expected, tmp_path):
    """Number 13: one byte flipped, one file cut short; the third newest is whole, and people are told why."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: len(timeline.records(CheckpointKept)) == 4)
        found = paused_with_checkpoint(session)
        third, second, newest = list(found.values())[-3:]
        spoil(newest.folder / newest.shards()[1], at=-1)
        spoil(second.folder / "learner.safetensors", at=None)
        os.kill(process_of(session, 1), signal.SIGKILL)
        until(session, lambda timeline: timeline.records(Restored))
        session.resume()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="rank 1")
    first, last = session.timeline.records(CheckpointFailed)
    assert (first.checkpoint, last.checkpoint) == (newest.number, second.number)
    assert newest.shards()[1] in first.reason
    assert "learner.safetensors is not as it was written" in last.reason
    assert "rank 1" in first.reason
    assert session.timeline.last(Restored).checkpoint == third.number


def test_a_hundred_wishes_in_a_second(cluster, tmp_path):
    """Number 15; the weights are not those of the run that nobody has steered."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: timeline.records(Steps))
        rates = [1e-3 * (1 + n / 100) for n in range(100)]
        numbers = [session.steer(learning_rate=rate) for rate in rates]
        answered(session, numbers[-1])
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, None, restarts=0)
    answers = [session.acknowledged(number) for number in numbers]
    assert all(first.step == second.step and first.digest == second.digest for first, second in answers)
    steps = [first.step for first, _ in answers]
    assert steps == sorted(steps)
    assert len(set(steps)) < 100
    assert [first.settings["learning_rate"] for first, _ in answers] == rates


def test_values_that_are_not_allowed(cluster, expected, tmp_path):
    """Number 16: refused where they are typed, and once more where a kernel has let one pass."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: timeline.records(Steps))
        for wrong in (
            {"learning_rate": float("nan")},
            {"batch": -1},
            {"policy": "newest"},
            {"capacity": "many"},
            {"representatives": 1.5},
            {"beta": -1.0},
        ):
            with pytest.raises(SettingsError, match=next(iter(wrong))):
                session.steer(**wrong)
        with pytest.raises(SettingsError, match="speed"):
            session.steer(speed=1)
        forged = session.note("x")
        answered(session, forged)  # what comes after a higher number counts as known
        wish = json.dumps({"number": forged + 1, "kind": "Steer", "learning_rate": -1.0})
        found = cluster.client.run_on_scheduler(look_for, str(session.run.path))
        holder = session.holders[-1]
        post = cluster.client.run_on_scheduler
        assert not post(post_wishes, found["topic"], [wish], holder=holder)
        until(session, lambda timeline: len(timeline.records(Noted)) == 2)
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)
    assert "learning_rate is -1.0; it must be a finite number" in session.timeline.last(Noted).text
    with pytest.raises(SettingsError):
        Wish.from_json(wish)


def test_going_back_to_a_checkpoint_that_one_rank_cannot_read(cluster, expected, tmp_path):
    """Number 17: the vote fails, no rank goes back, and the run goes on as if nobody had asked."""
    with session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: len(timeline.records(CheckpointKept)) == 3)
        oldest = next(iter(paused_with_checkpoint(session).values()))
        shard = oldest.shards()[1]
        spoil(oldest.folder / shard, at=200)
        said = answered(session, session.roll_back(oldest.number))
        assert {record.refused for record in said} == {said[0].refused}
        assert shard in said[0].refused
        assert "is not as it was written" in said[0].refused
        assert "rank 1" in said[0].refused
        session.resume()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)
    assert not session.timeline.records(BranchBegan)


@pytest.mark.parametrize("seconds", [3.5, pytest.param(70.0, marks=pytest.mark.endurance)])
def test_a_pause_longer_than_any_patience(cluster, expected, tmp_path, seconds):
    """Number 18: longer than the progress watch waits, and in the long version than the process groups do."""
    recovery = Recovery(checkpoint_s=0.3, stall_s=2.0, wait_s=60)
    with session_on(cluster, tmp_path / "run", recovery=recovery) as session:
        session.start()
        until(session, lambda timeline: timeline.records(Steps))
        session.pause()
        # Not once it is acknowledged: the last steps before it may be told later.
        session.until(lambda session: session.state == "paused", timeout=DEADLINE_S)
        still, later = step_told(session), time.monotonic() + seconds
        wait_for(lambda: time.monotonic() > later, timeout_s=seconds + 5)
        assert session.state == "paused"
        assert step_told(session) == still
        session.resume()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)


def test_a_kernel_killed_in_mid_training(cluster, expected, tmp_path):
    """Number 19: the steps go on while there is no kernel; the next one sees the whole curve and steers."""
    folder = RunFolder(tmp_path / "run")
    with kernel("train_on", json.dumps(cluster.place), str(folder.path)) as process:
        assert process.stdout.readline() == "training\n"
    killed = time.time()
    before = Timeline.load(folder.timeline).last(Steps).first
    wait_for(lambda: Timeline.load(folder.timeline).last(Steps).first > before + 40)
    usual = gaps(folder, since=0.0)
    longest = max(gaps(folder, since=killed - 0.5))
    with attach(folder.path) as session:
        assert session.leads
        number = session.note("a new kernel")
        answered(session, number)
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)
        session.cluster.client.close()
    print(f"\nkernel killed: longest gap {longest:.2f} s, usual {sorted(usual)[len(usual) // 2]:.2f} s")
    assert longest < 1.5 * SLOW


def test_a_cluster_that_nobody_uses_any_more(expected, tmp_path):
    """Number 20: its kernel is killed, the run goes on to its end, and then the cluster ends."""
    folder = RunFolder(tmp_path / "run")
    with kernel("train_on_own_cluster", str(folder.path), "5.0") as process:
        family = json.loads(process.stdout.readline())
        assert process.stdout.readline() == "training\n"
    place = Path(json.loads(folder.cluster.read_text())["folder"])
    assert place.exists()
    wait_for(lambda: any(entry["record"] == "RunOver" for entry in read_ledger(folder.generations)))
    require_whole_folder(folder, expected)
    wait_for(lambda: all(map(gone, family)), but="a process of the cluster is left")
    wait_for(lambda: not place.exists(), timeout_s=5)


def test_the_same_cell_twice_and_two_notebooks(cluster, expected, tmp_path):
    """Number 21: one run, one kernel that steers; the other one watches until it takes over, in words."""
    with session_on(cluster, tmp_path / "run") as first:
        with pytest.raises(RunFolderError, match="never written over"):
            session_on(cluster, tmp_path / "run")
        first.start()
        with pytest.raises(SessionError, match="make a new Session"):
            first.start()
        until(first, lambda timeline: timeline.records(Steps))
        answered(first, first.pause())  # it is under way, however long everything below takes
        with attach(tmp_path / "run") as viewer:
            assert not viewer.leads
            with pytest.raises(SessionError, match="take=True"):
                viewer.pause()
            until(viewer, lambda timeline: timeline.records(Steps))
        assert viewer.cluster.client.status == "closed"
        with pytest.raises(LeaseError, match=r"rk\.attach\("):  # on the very cluster that trains it
            resume(tmp_path / "run", cluster)
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "run")
        with attach(link, take=True) as second:
            assert second.leads
            wait_for(lambda: not first.leads)
            with pytest.raises(SessionError, match="take=True"):
                first.pause()
            first._run_connection.send(Wish(99, Stop()))  # on its way when the other took over
            wait_for(lambda: first.refused)
            with pytest.raises(SessionError, match=r"not accepted: Stop \(no\. 99\)"):
                first.wait(DEADLINE_S)
            answered(second, second.resume())
            assert second.wait(DEADLINE_S) == "finished"
            require_whole(second, expected, restarts=0)
            second.cluster.client.close()
        wait_for(lambda: first.over)
        require_whole(first, expected, restarts=0)


async def close_worker(dask_worker):
    """As a site's batch system has it closed: by itself, and its nanny may start another."""
    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(dask_worker.close(nanny=False)))


def test_the_end_of_a_worker_and_of_a_cluster_are_no_wishes(cluster, expected, tmp_path):
    """No ledger has them: ranks are started again, and a run without cluster goes on by resume."""
    with shared_cluster(check=False) as own:
        session = session_on(own, tmp_path / "run")
        session.start()
        until(session, lambda timeline: step_told(session) > 20)
        own.client.run(close_worker, workers=[session.timeline.last(GenerationBegan).workers[1]])
        until(session, lambda timeline: len(timeline.records(Restored)) == 1)
        (ended,) = session.timeline.records(GenerationEnded)
        assert "closed by itself" in ended.reason or "is gone" in ended.reason
        until(session, lambda timeline: step_told(session) > timeline.last(Restored).step + 20)
        own.close()
        assert session.wait(DEADLINE_S) == "interrupted"
        assert "rk.resume(" in session.error
    kinds = [entry["kind"] for entry in read_ledger(session.run.effects)]
    assert "Stop" not in kinds
    assert kinds[-1] == "TakeCheckpoint"
    with resume(tmp_path / "run", cluster, network=Frail()) as session:
        assert session.wait(DEADLINE_S) == "finished"
    require_whole_folder(session.run, expected)
    assert "Reopen" not in [entry["kind"] for entry in read_ledger(session.run.effects)]


# Many of them, from a fixed seed; test_endurance.py has the long versions -----------------------------------


def test_a_worker_whose_connection_breaks_is_started_again(cluster):
    """It closes by itself and takes its nanny with it: nobody but the server can bring it back."""
    before = known_workers(cluster)
    cut, kept = before
    with contextlib.suppress(OSError):  # the answer is lost with the connection
        cluster.client.run(break_connection, workers=[cut])

    def names() -> list[str]:
        now = known_workers(cluster)
        return [str(each["name"]) for address, each in now.items() if address != cut]

    wanted = sorted(str(each["name"]) for each in before.values())
    wait_for(lambda: sorted(names()) == wanted)
    assert kept in known_workers(cluster)


def break_connection(dask_worker: Worker) -> None:
    """For client.run: what a switch does that is started anew."""
    dask_worker.batched_stream.comm.abort()


def test_a_frozen_worker_is_asked_until_a_deadline(cluster):
    address, (_, process) = next(iter(ask_workers(cluster.client, tell_process).items()))
    os.kill(process, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(ClusterGoneError, match=r"has not answered in 1 s.*rehearsal-kit stop"):
            ask_workers(cluster.client, tell_process, workers=[address], timeout_s=1)
        assert time.monotonic() - began < 5
    finally:
        os.kill(process, signal.SIGCONT)
    assert ask_workers(cluster.client, tell_process)[address][1] == process


def test_two_kills_at_random_moments(cluster, expected, tmp_path):
    """Each costs seconds and a few steps that are repeated; nothing else is different from then on."""
    survive_kills(cluster, expected, tmp_path, kills=2)
