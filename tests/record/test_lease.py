"""One owner of a run folder, whatever it is called and whoever died: the lease, and who asks for it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from runkit import (
    ALONE,
    CutOffError,
    Meanwhile,
    carry_out,
    class_tasks,
    job_in,
    job_in_existing,
    same,
    weights_of,
)
from threads import beside

from rehearsal_kit.base.errors import ClusterGoneError, LeaseError, RunFolderError
from rehearsal_kit.base.files import write_private, written_whole
from rehearsal_kit.base.process_identity import ProcessIdentity
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.rank.run_spec import keep_spec
from rehearsal_kit.record.commands import FinishStream, TakeCheckpoint
from rehearsal_kit.record.lease import GONE_S, LeaseWatch, RunLease, require_free
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.session.attach import attach, resume

PLACE = {"folder": "/home/me/.rehearsal-kit/clusters/ab12cd34"}
HOLDS = """
import sys, time
from rehearsal_kit.record.lease import RunLease
from rehearsal_kit.record.run_folder import RunFolder
lease = RunLease.take(RunFolder(sys.argv[1]), place={"folder": "/home/me/clusters/ab12cd34"})
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(run):
    """Another process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert select.select([process.stdout], [], [], 60)[0], "it has not taken the lease"
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def forged(run, *, old_s=0.0, **process):
    """The file of a holder as another process would have left it, which keeps no lock."""
    RunLease.take(run, place=PLACE).release()
    values = {"host": "elsewhere", "boot": "another", "number": 7, "created": 1.0, **process}
    inode, path = run.path.stat().st_ino, run.path / "lease.json"
    plain = {"token": "t", "process": values, "place": PLACE, "generation": 1, "folder": str(run.path)}
    write_private(path, json.dumps({**plain, "inode": inode}))
    last = path.stat().st_mtime - old_s
    os.utime(path, (last, last))
    return path


def test_a_second_one_is_refused_and_told_what_to_type_until_the_first_lets_go(run):
    lease = RunLease.take(run, place=PLACE)
    for call in (lambda: RunLease.take(run, place={}), lambda: require_free(run)):
        with pytest.raises(LeaseError) as refused:
            call()
        assert f"rk.attach({str(run.path)!r})" in str(refused.value)
        assert "rehearsal-kit stop ab12cd34" in str(refused.value)
        assert "resume" not in str(refused.value)
    assert (run.path / "lease.json").stat().st_mode & 0o077 == 0
    lease.release()
    lease.release()
    require_free(run)
    RunLease.take(run, place=PLACE).release()
    assert not (run.path / "lease.json").exists()


def test_of_a_cluster_that_somebody_else_started_the_advice_is_another(run):
    lease = RunLease.take(run, place={"scheduler_file": "/home/me/scheduler.json"})
    with pytest.raises(LeaseError, match=r"scheduler\.json.*take=True\)\.close\(\)"):
        require_free(run)
    lease.release()


def test_the_lease_of_a_killed_process_is_taken_at_once(run, holder):
    with pytest.raises(LeaseError, match=f"process {holder.pid} "):
        RunLease.take(run, place=PLACE)
    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    require_free(run)
    lease = RunLease.take(run, place=PLACE)
    with pytest.raises(LeaseError, match="ab12cd34"):
        require_free(run)
    lease.release()
    assert not [path for path in run.path.iterdir() if path.name != "lease.lock"]


def test_a_frozen_process_is_not_gone_however_long_it_is_silent(run, holder):
    holder.send_signal(signal.SIGSTOP)
    path = run.path / "lease.json"
    os.utime(path, (0, 0))
    with pytest.raises(LeaseError, match="under way"):
        RunLease.take(run, place=PLACE)


def test_the_lock_counts_where_the_process_cannot_be_seen(run, holder):
    """In another container of the same machine its number means nothing, or another process."""
    path = run.path / "lease.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "process": {**plain["process"], "number": 2**22 + 1}}))
    os.utime(path, (0, 0))
    with pytest.raises(LeaseError, match="under way"):
        RunLease.take(run, place=PLACE)


def test_a_process_with_the_number_of_a_dead_one_is_not_the_dead_one(run):
    me = ProcessIdentity.of_this()
    assert me.is_this
    forged(run, host=me.host, boot=me.boot, number=me.number, created=me.created)
    with pytest.raises(LeaseError):  # its lock file was removed, say: what can be seen to live lives
        require_free(run)
    forged_again = RunFolder(run.path.parent / "other").create()
    forged(forged_again, host=me.host, boot=me.boot, number=me.number, created=me.created - 60)
    require_free(forged_again)
    RunLease.take(forged_again, place=PLACE).release()


def test_on_another_machine_it_is_gone_once_it_gave_no_sign_of_life_for_long(run):
    forged(run, old_s=GONE_S - 10)
    with pytest.raises(LeaseError, match=r"on elsewhere.*rk\.attach.*sign of life 5\d s ago.*60 s after"):
        RunLease.take(run, place=PLACE)
    forged(RunFolder(run.path.parent / "other").create(), old_s=GONE_S + 10)
    RunLease.take(RunFolder(run.path.parent / "other"), place=PLACE).release()


def test_the_clock_of_this_machine_does_not_matter(run):
    """Both times that are compared come from the file system: a holder with another clock is no older."""
    lease = RunLease.take(run, place=PLACE)
    os.utime(run.path / "lease.json", (0, 0))
    lease.beat()
    age_s = (run.path / "lease.lock").stat().st_mtime - (run.path / "lease.json").stat().st_mtime
    assert abs(age_s) < GONE_S / 2
    lease.release()


def test_a_torn_file_is_somebody_who_has_just_begun_or_died_at_that(run):
    path = forged(run)
    path.write_text('{"token": "t", "proc')
    with pytest.raises(LeaseError, match="look again in 60 s"):
        RunLease.take(run, place=PLACE)
    os.utime(path, (0, 0))
    RunLease.take(run, place=PLACE).release()


def test_a_copy_of_the_folder_is_free_and_the_moved_folder_is_not(run):
    lease = RunLease.take(run, place=PLACE)
    copy, moved = run.path.parent / "copy", run.path.parent / "moved"
    shutil.copytree(run.path, copy)
    RunLease.take(RunFolder(copy), place={}).release()
    run.path.rename(moved)
    with pytest.raises(LeaseError):
        require_free(RunFolder(moved))
    lease.beat()
    lease.release()
    require_free(RunFolder(moved))


def test_a_link_and_another_spelling_are_the_same_run(run, monkeypatch):
    link = run.path.parent / "link"
    link.symlink_to(run.path)
    monkeypatch.chdir(run.path.parent)
    spelt = [RunFolder(link), RunFolder("run"), RunFolder(run.path.parent / "x" / ".." / "run")]
    assert {each.path for each in spelt} == {run.path}
    lease = RunLease.take(spelt[0], place=PLACE)
    with pytest.raises(LeaseError):
        RunLease.take(spelt[1], place=PLACE)
    lease.release()


def test_who_lost_the_lease_notices_and_does_not_end_that_of_the_next(run):
    lost = RunLease.take(run, place=PLACE)
    (run.path / "lease.json").unlink()
    with pytest.raises(LeaseError, match="nobody holds it now"):
        lost.beat()
    forged(RunFolder(run.path.parent / "o").create()).rename(run.path / "lease.json")
    with pytest.raises(LeaseError, match="lost to somebody else"):
        lost.beat()
    lost.release()
    assert (run.path / "lease.json").exists()


def test_of_many_that_take_it_at_once_one_does(run):
    forged(run, old_s=2 * GONE_S)  # and all find one that is gone
    leases, refused, gate = [], [], threading.Barrier(8, timeout=30)

    def take():
        gate.wait()
        try:
            leases.append(RunLease.take(run, place=PLACE))
        except LeaseError as error:
            refused.append(error)

    beside([take] * 8, within_s=60)
    assert (len(leases), len(refused)) == (1, 7)
    leases[0].beat()
    leases[0].release()


def test_of_many_sessions_in_a_new_folder_one_is_made(tmp_path):
    made, refused, gate = [], [], threading.Barrier(8, timeout=30)

    def create():
        gate.wait()
        try:
            made.append(RunFolder(tmp_path / "new").create())
        except RunFolderError as error:
            refused.append(error)

    beside([create] * 8, within_s=60)
    assert (len(made), len(refused)) == (1, 7)


# Ranks ---------------------------------------------------------------------------------------------------


def test_a_rank_without_the_lease_writes_nothing_at_all(tmp_path):
    spec = job_in(tmp_path / "run")
    lease = RunLease.take(spec.run, place=PLACE)
    with pytest.raises(LeaseError, match="ab12cd34"):
        carry_out(ALONE, spec, [], lease="that of an earlier cluster")
    left = {path.name for path in spec.run.path.iterdir()}
    assert left == {"lease.lock", "lease.json", "wishes.jsonl", "generations.jsonl"}  # none of a rank
    lease.release()
    with pytest.raises(LeaseError, match="nobody holds it"):
        carry_out(ALONE, spec, [], lease=lease.token)


def test_a_rank_that_loses_the_lease_ends_and_completes_no_checkpoint(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=2, each=2000)
    spec = job_in(tmp_path / "run")
    lease = RunLease.take(spec.run, place=PLACE)
    network = Meanwhile(19, (spec.run.path / "lease.json").unlink)  # another cluster takes the folder over
    # The checkpoint comes before the ranks look again, so that it is its own look that counts.
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (20, TakeCheckpoint())]
    with pytest.raises(LeaseError, match="lost to somebody else"):
        carry_out(ALONE, spec, plan, network=network, lease=lease.token)
    assert 20 <= network.steps < 1500  # half a second later, not at the end
    assert not find_checkpoints(spec.run.checkpoints)
    lease.release()


def test_who_looks_now_and_then_looks_at_once_where_it_matters(run):
    lease = RunLease.take(run, place=PLACE)
    watch = LeaseWatch(run, lease.token)
    watch.require()
    lease.release()
    watch.look()  # a moment ago it was held
    with pytest.raises(LeaseError):
        watch.require()


# Kernels -------------------------------------------------------------------------------------------------


def stored_run(folder):
    spec = job_in(folder)
    keep_spec(spec, ranks=1)
    write_private(spec.run.cluster, json.dumps({"folder": str(folder / "cluster-that-is-gone")}))
    return spec.run


def test_resume_refuses_before_it_asks_any_cluster(tmp_path):
    run = stored_run(tmp_path / "run")
    link = tmp_path / "link"
    link.symlink_to(run.path)
    lease = RunLease.take(run, place=PLACE)
    with pytest.raises(LeaseError, match=r"rk\.attach.*rehearsal-kit stop ab12cd34"):
        resume(link, None)
    lease.release()


def test_attach_never_advises_to_resume_what_may_be_alive(tmp_path):
    run = stored_run(tmp_path / "run")
    path = forged(run)
    with pytest.raises(LeaseError, match="on elsewhere") as refused:
        attach(run.path)
    assert "resume" not in str(refused.value)
    os.utime(path, (0, 0))
    with pytest.raises(ClusterGoneError, match=r"rk\.resume\("):
        attach(run.path)


def test_a_folder_that_holds_a_run_names_both_ways_to_go_on(tmp_path):
    run = stored_run(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"never written over.*rk\.attach\('.*rk\.resume\('") as refused:
        RunFolder(run.path).create()
    assert str(refused.value).count(str(run.path)) == 3


# Own files ------------------------------------------------------------------------------------------------


def test_a_new_file_is_never_one_that_is_there(run):
    first, second = run.new_task(), run.new_task()
    first.unlink()
    third = run.new_task()
    assert len({first, second, third}) == 3
    names, gate = [], threading.Barrier(8, timeout=30)

    def new():
        gate.wait()
        names.append(run.new_task())

    beside([new] * 8, within_s=60)
    assert len(set(names)) == 8
    assert all(path.stat().st_mode & 0o077 == 0 for path in names)


def test_what_a_dead_process_has_left_half_written_blocks_nobody(run):
    stale = run.path / f".settings.json.{os.getpid()}.partial"
    stale.write_text("half")
    write_private(run.settings, "whole")
    with written_whole(run.settings) as one, written_whole(run.settings) as other:  # two threads, say
        one.write_text("one")
        other.write_text("other")
    assert run.settings.read_text() == "one"  # whose block ended last
    run.rendezvous(3).write_text("")
    run.previews.mkdir()
    for name in ("after_000001.h5", ".after_000002.h5.0123.partial"):
        (run.previews / name).write_text("")
    run.clear_leftovers()
    assert sorted(path.name for path in run.path.iterdir()) == ["lease.lock", "previews", "settings.json"]
    assert [path.name for path in run.previews.iterdir()] == ["after_000001.h5"]


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied, original gone"])
def test_a_run_goes_on_where_its_folder_was_moved_to(tmp_path, copied):
    whole, spec = job_in(tmp_path / "whole"), job_in(tmp_path / "run")
    for each in (whole, spec):
        plan = [*[(0, task) for task in class_tasks(each.run.path / "tasks", tasks=2)], (0, FinishStream())]
        plan.append((5, TakeCheckpoint()))
        if each is whole:
            carry_out(ALONE, each, plan)
            continue
        with pytest.raises(CutOffError):
            carry_out(ALONE, each, plan, cut=8)
    arrived = [entry["path"] for entry in read_ledger(spec.run.effects) if entry["kind"] == "Arrived"]
    assert arrived == ["tasks/0.h5", "tasks/1.h5"]
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    if copied:
        shutil.copytree(spec.run.path, moved)
        shutil.rmtree(spec.run.path)
    else:
        spec.run.path.rename(moved)
    again = job_in_existing(moved)
    assert carry_out(ALONE, again, plan, generation=2)[0] == "finished"
    assert same(weights_of(again), weights_of(whole))


def test_a_replay_finds_the_files_of_the_run_that_it_follows_also_where_that_was_moved(tmp_path):
    spec = job_in(tmp_path / "run")
    tasks = class_tasks(spec.run.path / "tasks", tasks=2)
    carry_out(ALONE, spec, [*[(0, task) for task in tasks], (0, FinishStream())])
    spec.run.path.rename(tmp_path / "moved")
    moved = job_in_existing(tmp_path / "moved")
    replay = job_in(tmp_path / "replay", replays=moved.run)
    assert carry_out(ALONE, replay, [])[0] == "finished"
    assert same(weights_of(replay), weights_of(moved))
    paths = [entry["path"] for entry in read_ledger(replay.run.effects) if entry["kind"] == "Arrived"]
    assert paths == [str(moved.run.path / "tasks" / f"{number}.h5") for number in range(2)]


def test_tasks_that_were_written_down_by_their_whole_path_are_found_in_the_moved_folder(run):
    (run.path / "tasks").mkdir()
    (run.path / "tasks" / "0000.h5").write_text("")
    assert run.find("/gone/run/tasks/0000.h5") == str(run.path / "tasks" / "0000.h5")
    assert run.find("tasks/0000.h5") == str(run.path / "tasks" / "0000.h5")
    assert run.find("/gone/scans/0000.h5") == "/gone/scans/0000.h5"
    assert run.inside(run.path / "tasks" / "0000.h5") == "tasks/0000.h5"
    assert run.inside("/data/scan.cxi") == "/data/scan.cxi"
    assert run.inside("tasks/0000.h5") == "tasks/0000.h5"  # whatever the current folder is
    link = run.path.parent / "link"
    link.symlink_to(run.path)
    assert run.inside(link / "tasks" / "0000.h5") == "tasks/0000.h5"
