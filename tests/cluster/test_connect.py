"""A cluster that somebody else started, by the commands in the help of connect()."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gpukit
import psutil
import pytest
from faultkit import answered, process_of, require_ledgers, session_on, tasks, until
from intruder import NOBODY, listening
from ranks import CODE, Tiny

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError
from rehearsal_kit.base.network_interfaces import interface_named, interfaces, is_loopback
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.cluster.cluster import connect, reach
from rehearsal_kit.cluster.key_files import untimely, write_key
from rehearsal_kit.cluster.scheduler_connection import closed_quietly, open_connection, scheduler_in
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded
from rehearsal_kit.record.records import BranchBegan, Steps, TaskBegan, TaskEnded
from rehearsal_kit.session.attach import attach
from rehearsal_kit.session.replay import recorded_ranks
from rehearsal_kit.session.session import Session

DEADLINE_S = 60
DAY = timedelta(days=1)


def commands(folder: Path, *, gpus: bool = False) -> str:
    """The commands in the help of connect(), for loopback, as a script that runs until it is ended.

    gpus: with workers on GPUs, by dask-cuda and by us, in place of those on CPUs.
    """
    said = re.findall(
        r"(?<=\n\n)( {8}(?:rehearsal-kit key|dask cuda|for GPU) .*?)\n(?=\n)", connect.__doc__, re.DOTALL
    )
    assert len(said) == 3
    scheduler, by_dask_cuda, by_us = (textwrap.dedent(block) for block in said)
    script = scheduler
    if gpus:
        script = f"{scheduler[: scheduler.index('CUDA_VISIBLE_DEVICES=')]}{by_dask_cuda}\n{by_us}"
    words = {"KEY": folder / "key.pem", "FILE": folder / "scheduler.json"}
    words |= {"ADDRESS": interface_named(None).address}
    for word, meant in words.items():
        script = re.sub(rf"\b{word}\b", str(meant), script)
    lines = script.replace("\\\n", " ").splitlines()
    begun = ("dask", "CUDA_VISIBLE_DEVICES=")
    return "\n".join(f"{line} &" if line.startswith(begun) else line for line in [*lines, "wait"])


@contextlib.contextmanager
def running(script: str, log: Path, **variables: str):
    """A shell with this script and everything it starts."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, CODE)), **variables}
    # As job scripts leave it; the ranks listen where `dask worker` does, all the same.
    environment["GLOO_SOCKET_IFNAME"] = interfaces()[-1].name
    environment["PATH"] = (
        f"{log.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    )
    with log.open("w") as said:
        shell = subprocess.Popen(
            ["bash", "-euc", script], env=environment, stdout=said, stderr=said, start_new_session=True
        )
    family = psutil.Process(shell.pid)
    try:
        yield family
    finally:
        everyone = [family, *family.children(recursive=True)]
        os.killpg(shell.pid, signal.SIGTERM)
        _, left = psutil.wait_procs(everyone[1:], timeout=20)
        for process in left:
            process.kill()
        shell.wait()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    with running(commands(folder), folder / "log.txt") as family:
        deadline = time.monotonic() + DEADLINE_S
        while not (folder / "scheduler.json").exists():
            assert family.is_running(), (folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.05)
        assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
        connected(folder).close()  # the workers are up
        yield folder, family


def connected(folder: Path):
    return connect(folder / "scheduler.json", key=folder / "key.pem", workers=2, timeout_s=2 * DEADLINE_S)


@pytest.mark.cluster
def test_a_run_on_a_cluster_that_was_started_by_hand(theirs, tmp_path):
    folder, family = theirs
    scan = Beamline(folder=tmp_path, scans=1, seed=1).write(0)
    with connected(folder) as cluster:
        assert (cluster.address.workers, cluster.address.kind) == (2, "cpu")
        workers = cluster.processes()[1:]
        assert len(workers) == 2
        assert set(workers) <= set(family.children(recursive=True))
        with Session(
            cluster,
            run=tmp_path / "run",
            strategy=ER(),
            network=Tiny(seed=1),
            preparation=Preparation(size=16),
            training=Training(batch=8, epochs=4, scaling="none"),
            rehearsal=Rehearsal(representatives=16, candidates=4, capacity=80),
        ) as session:
            session.submit(scan)
            session.finish_stream()
            session.start()
            session.until(lambda session: session.timeline.last(Steps), timeout=DEADLINE_S)
            assert {host for host, _ in listening(workers)} == {"127.0.0.1"}
            assert session.wait(DEADLINE_S) == "finished"
        assert len(session.timeline.records(TaskEnded)) == 1
        with pytest.raises(ClusterError, match="started by somebody else"):
            _ = cluster.files
    assert all(worker.is_running() for worker in workers)


@pytest.mark.cluster
def test_a_run_goes_on_without_a_worker_and_takes_it_back_after_a_task(theirs, tmp_path):
    """The machine of a worker hangs when it has died, so that nobody brings it back; then that goes on."""
    recovery = Recovery(checkpoint_s=1000, wait_s=1.0, fewest=1)
    with connected(theirs[0]) as cluster:
        session = session_on(cluster, tmp_path / "run", recovery=recovery, sizes=(80,), open_end=True)
        session.start()
        until(session, lambda timeline: timeline.last(Steps))
        assert session.ranks == 2
        lost = psutil.Process(process_of(session, 1))
        nanny = lost.parent()
        nanny.suspend()
        try:
            lost.kill()
            until(session, lambda timeline: len(timeline.records(GenerationBegan)) == 2)
            assert session.ranks == 1
            with attach(session.run.path) as viewer:
                assert (viewer.ranks, viewer.leads) == (1, False)
            until(session, lambda timeline: timeline.last(TaskEnded))
            session.submit(tasks((160,))[0])
            until(session, lambda timeline: timeline.last(TaskBegan).task == 1)
            said = answered(session, session.pause())
            assert [(record.rank, record.ranks) for record in said] == [(0, 1)]
            session.note("asked of one rank, and answered by it")
        finally:
            nanny.resume()
        session.resume()
        until(session, lambda timeline: len(timeline.records(GenerationBegan)) == 3)
        session.submit(tasks((40,))[0])
        session.finish_stream()
        assert session.wait(DEADLINE_S) == "finished"
        assert session.ranks == 2
        session.close()
    timeline = session.timeline
    assert [(len(each.workers), each.of) for each in timeline.records(GenerationBegan)] == [
        (2, 2),
        (1, 2),
        (2, 2),
    ]
    gone, taken = timeline.records(GenerationEnded)
    assert "worker of rank 1" in gone.reason or "rank 0" in gone.reason
    assert taken.reason.endswith("goes on with 2 of 2 workers.")
    fewer, more = timeline.records(BranchBegan)
    ended = [record for record in timeline.records(TaskEnded) if record.branch <= fewer.branch]
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 1, 2]
    assert more.step == more.left == ended[-1].step
    steps, _ = timeline.lineage().losses()
    assert steps == list(range(len(steps)))
    require_ledgers(session.run)
    assert recorded_ranks(session.run) == [2, 1, 2]


@pytest.mark.cluster
def test_it_listens_on_loopback_only_and_another_process_reaches_it_again(theirs):
    folder, family = theirs
    with connected(folder) as cluster:
        place = json.loads(json.dumps(cluster.place))
    assert {host for host, _ in listening(family.children(recursive=True))} == {"127.0.0.1"}
    with reach(place) as again:
        assert len(again.client.nthreads()) == 2
        assert "disconnects and leaves it running" in repr(again)


@pytest.mark.cluster
def test_without_the_right_key_it_is_not_entered(theirs, tmp_path):
    folder, _ = theirs
    with pytest.raises(ClusterError, match="speaks TLS; give key="):
        connect(folder / "scheduler.json")
    write_key(tmp_path / "key.pem")
    with pytest.raises(ClusterGoneError, match="or it has another key"):
        connect(folder / "scheduler.json", key=tmp_path / "key.pem", timeout_s=1)


@pytest.mark.cluster
def test_plain_tcp_beyond_loopback_is_for_those_who_ask_and_no_workers_are_told(tmp_path):
    beyond = [each for each in interfaces() if not is_loopback(each.address)]
    if not beyond:
        pytest.skip("this machine has no interface but loopback")
    file = tmp_path / "scheduler.json"
    script = f"umask 077; exec dask scheduler --scheduler-file {file} --host {beyond[0].address} --port 0"
    with running(f"{script} --dashboard-address 127.0.0.1:0", tmp_path / "log.txt"):
        deadline = time.monotonic() + DEADLINE_S
        while not file.exists():
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        with pytest.raises(ClusterError, match="speaks no TLS: whoever reaches it runs programs as you"):
            connect(file)
        with pytest.raises(ClusterError, match=r"has 0 of 1 workers after 0\.5 s; are `dask worker` started"):
            connect(file, insecure=True, timeout_s=0.5)
        left = file.read_text()
    file.write_text(left)  # as a scheduler that was killed leaves it
    with pytest.raises(ClusterGoneError, match="does not answer"):
        connect(file, insecure=True, timeout_s=0.5)


def test_of_a_scheduler_that_ended_a_kernel_is_told_in_words_alone(tmp_path):
    file = tmp_path / "scheduler.json"
    script = f"umask 077; exec dask scheduler --scheduler-file {file} --host 127.0.0.1 --port 0"
    logger, told = logging.getLogger("distributed.batched"), logging.handlers.QueueHandler(queue.Queue())
    with running(f"{script} --dashboard-address 127.0.0.1:0", tmp_path / "log.txt"):
        deadline = time.monotonic() + DEADLINE_S
        while not file.exists():
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        client = open_connection(scheduler_in(file), None, timeout_s=DEADLINE_S)
        batched = client.scheduler_comm
        logger.addHandler(told)
        try:
            client.sync(interrupted, batched)
            client.sync(batched.stopped.wait, timeout=timedelta(seconds=DEADLINE_S))
        finally:
            logger.removeHandler(told)
            with closed_quietly():
                client.close()
    assert told.queue.empty(), told.queue.get().getMessage()


async def interrupted(batched):
    """Sends something, and has lost the connection before it is written."""
    batched.send({"op": "heartbeat-client"})
    batched.comm.abort()


def bound(dask_worker):
    """For client.run: which GPUs a worker sees, and whether it has imported what its first step would."""
    imported = [
        name for name in ("rehearsal_kit.cluster.rank_host", "dask_cuda.initialize") if name in sys.modules
    ]
    return dask_worker.name, os.environ["CUDA_VISIBLE_DEVICES"], imported


@pytest.mark.cluster
def test_workers_on_gpus_are_started_by_dask_cuda_or_one_by_one_and_one_that_has_none_is_named(tmp_path):
    gpukit.require_dask_cuda()
    listed = tmp_path / "nvidia-smi"
    listed.write_text("#!/bin/sh\necho GPU-fake-0\n")
    listed.chmod(0o700)
    with running(
        commands(tmp_path, gpus=True),
        tmp_path / "log.txt",
        **gpukit.variables([{}], CUDA_VISIBLE_DEVICES="GPU-fake-0"),
    ):
        deadline = time.monotonic() + 2 * DEADLINE_S
        while not (tmp_path / "scheduler.json").exists():
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        file, key = tmp_path / "scheduler.json", tmp_path / "key.pem"
        client = open_connection(scheduler_in(file), key, timeout_s=DEADLINE_S)
        client.wait_for_workers(2, timeout=3 * DEADLINE_S)
        host, ours = socket.gethostname(), ["rehearsal_kit.cluster.rank_host"]
        assert sorted(client.run(bound).values()) == [
            (host, "GPU-fake-0", [*ours, "dask_cuda.initialize"]),
            (f"{host}-GPU-fake-0", "GPU-fake-0", ours),
        ]
        with closed_quietly():
            client.close()
        with pytest.raises(
            ClusterError, match=rf"worker {host} on {host} was started by `dask cuda worker`, but"
        ):
            connect(file, key=key, workers=2, timeout_s=DEADLINE_S)


def scheduler_file(folder: Path, address: str, *, mode: int = 0o600) -> Path:
    file = folder / "scheduler.json"
    file.write_text(json.dumps({"address": address}))
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("address", "mode", "said"),
    [
        ("tcp://10.1.2.3:4567", 0o600, r"tcp://10\.1\.2\.3:4567 .* speaks no TLS"),
        ("ucx://10.1.2.3:4567", 0o600, "speaks no TLS"),
        ("tcp://127.0.0.1.example:4567", 0o600, "speaks no TLS"),
        ("tcp://[2001:db8::1]:4567", 0o600, "speaks no TLS"),
        ("tls://10.1.2.3:4567", 0o600, "give key="),
        ("tls://10.1.2.3:4567", 0o620, "mode 620; .*not writable by others: chmod 600"),
        ("tls://10.1.2.3:4567", 0o602, "mode 602; .*not writable by others"),
        ("somewhere", 0o600, "must be like tls://"),
    ],
)
def test_a_scheduler_file_that_cannot_be_trusted_is_refused(tmp_path, address, mode, said):
    with pytest.raises(ClusterError, match=said):
        connect(scheduler_file(tmp_path, address, mode=mode))


def test_a_scheduler_file_that_is_being_written_is_waited_for_and_one_that_never_is_refused(tmp_path):
    """Dask opens it before it writes: a job script that waits for it to exist may find it empty."""
    file = scheduler_file(tmp_path, "tls://10.1.2.3:4567")
    whole = file.read_text()
    file.write_text(whole[:9])
    writer = threading.Timer(0.5, file.write_text, [whole])
    writer.start()
    try:
        assert scheduler_in(file) == "tls://10.1.2.3:4567"
    finally:
        writer.join()
    file.write_text(whole[:9])
    with pytest.raises(ClusterError, match="is no scheduler file"):
        scheduler_in(file)


def test_a_key_promises_tls(tmp_path):
    write_key(tmp_path / "key.pem")
    with pytest.raises(ClusterError, match=r"a key was given, but .* speaks no TLS"):
        connect(scheduler_file(tmp_path, "tcp://127.0.0.1:4567"), key=tmp_path / "key.pem", insecure=True)


def test_files_that_are_none_are_refused(tmp_path):
    file = tmp_path / "scheduler.json"
    with pytest.raises(ClusterError, match="cannot be read: No such file"):
        connect(file)
    with pytest.raises(ClusterGoneError, match=r"scheduler\.json is not there any more"):
        reach({"scheduler_file": str(file), "key": str(tmp_path / "key.pem")})
    with pytest.raises(ClusterError, match="no place of a cluster"):
        reach({"key": "mine"})
    file.write_text("[]")
    with pytest.raises(ClusterError, match="no scheduler file"):
        connect(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ClusterError, match="must be a file"):
        connect(tmp_path / "pipe")


def test_a_key_file_that_others_could_use_is_refused(tmp_path):
    file, key = scheduler_file(tmp_path, "tls://10.1.2.3:4567"), tmp_path / "key.pem"
    write_key(key)
    for mode in (0o640, 0o604, 0o620, 0o602):
        key.chmod(mode)
        with pytest.raises(ClusterError, match=f"mode {mode:o}; .*yours alone: chmod 600"):
            connect(file, key=key)
    key.chmod(0o600)
    (tmp_path / "link.pem").symlink_to(key)
    with pytest.raises(ClusterError, match="symbolic link; give the file itself"):
        connect(file, key=tmp_path / "link.pem")
    with pytest.raises(ClusterError, match="choose a new name"):
        write_key(tmp_path / "link.pem")
    if os.getuid() == 0:
        os.chown(key, NOBODY, NOBODY)
        with pytest.raises(ClusterError, match=f"belongs to user {NOBODY}"):
            connect(file, key=key)


def test_a_key_is_valid_where_the_clock_is_behind_and_else_the_clock_is_named(tmp_path):
    key, now = tmp_path / "key.pem", datetime.now(UTC)
    write_key(key)
    for behind in (timedelta(0), timedelta(minutes=5), timedelta(hours=23)):
        assert untimely(key, now - behind) == ""
    assert re.search(
        r"valid from .* the clock of this machine says .* set the clock", untimely(key, now - 2 * DAY)
    )
    assert "write a new one by `rehearsal-kit key NEW`" in untimely(key, now + 366 * DAY)


def test_the_command_key_never_writes_over_one(tmp_path):
    write_key(tmp_path / "key.pem")
    command = [sys.executable, "-m", "rehearsal_kit.cli", "key", str(tmp_path / "key.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "choose a new name" in done.stderr
    assert "Traceback" not in done.stderr
