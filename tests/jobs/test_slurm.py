"""Clusters in jobs of a real Slurm, with a login node and two compute nodes of their own addresses.

In order: each test goes on with what the one before has left, as a job takes longer to start than to use.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time

import pytest
import slurmkit
import torch
from faultkit import (
    DEADLINE_S,
    SLOW,
    Expected,
    Frail,
    answered,
    kernel,
    require_whole,
    session_on,
    step_told,
    until,
    wait_for,
)
from intruder import break_in, disguises, web_ports

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.batch.job import Job
from rehearsal_kit.cli.main import main
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.cluster.job_folder import job_named
from rehearsal_kit.data.tensor_tasks import split_classes
from rehearsal_kit.jobs.launch import connect_job, launch, submit
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.rank_records import GenerationBegan, RunOver
from rehearsal_kit.record.records import Restored, Steps
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.session.attach import attach, resume
from rehearsal_kit.session.replay import compare_runs, replay_run
from rehearsal_kit.session.session import Session

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
TWO_NODES = {"nodes": 2, "interface": "eth0"}
FEWER = {"wait_s": 3, "fewest": 1}
MORE_S = 10 * SLOW
"""What a job may take longer to its first step than a cluster on this machine, where it starts at once."""


@pytest.fixture(scope="module")
def there():
    lacking = slurmkit.lacking()
    if lacking and os.environ.get("CI"):
        pytest.fail(f"CI has to show this: {lacking}")
    if lacking:
        pytest.skip(lacking)
    with slurmkit.slurm() as slurm:
        yield slurm


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run comes to on two workers of this machine, without a job; and seconds to its first step."""
    began = time.monotonic()
    with start_cluster("cpu", workers=2) as cluster:
        found = Expected.of(cluster, tmp_path_factory.mktemp("expected") / "run")
    return found, time.monotonic() - began - found.seconds


def test_a_job_outlives_a_kernel_on_the_login_node_and_the_kill_of_a_worker(there, expected, tmp_path):
    whole, _ = expected
    number = submit(Job(**TWO_NODES)).read_job().number
    with kernel("train_on_job", number, str(tmp_path / "run")) as process:
        assert process.stdout.readline() == "training\n"
        assert process.stdout.readline() == "paused\n"
    with attach(tmp_path / "run") as session:
        assert session.leads
        hosts = {address.rpartition(":")[0] for address in session.timeline.last(GenerationBegan).workers}
        assert hosts == {f"tls://{there.net}.11", f"tls://{there.net}.12"}
        for number, node in enumerate(slurmkit.NODES, 1):
            assert there.listening(node) <= {f"{there.net}.1{number}", "127.0.0.1"}
        answered(session, session.steer(learning_rate=1e-3))  # what it is already
        worker = session.timeline.last(GenerationBegan).workers[1]
        os.kill(session.cluster.client.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
        until(session, lambda timeline: timeline.last(Restored))
        session.resume()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, whole, restarts=1, reason="rank|worker")
    assert "launch --cancel" in repr(session.cluster)


@pytest.mark.endurance  # beside nothing else: both figures are seconds of the same two processors
def test_the_first_step_in_a_job_comes_at_most_ten_seconds_later(there, expected, tmp_path):
    _, plain_s = expected
    began = time.monotonic()
    with launch(Job(**TWO_NODES)) as cluster, session_on(cluster, tmp_path / "run") as session:
        session.start()
        until(session, lambda timeline: timeline.last(Steps))
        job_s = time.monotonic() - began
    print(f"\nseconds to the first step: {job_s:.1f} in a job, {plain_s:.1f} with start_cluster()")
    assert job_s < plain_s + MORE_S


def test_nobody_without_the_key_gets_in(there, expected, tmp_path):
    cluster = connect_job()
    address = cluster.address.scheduler.removeprefix("tls://")
    port = [(address.rpartition(":")[0], int(address.rpartition(":")[2]))]
    assert not web_ports(port)
    found = break_in(port, tmp_path / "marker", disguises())
    assert all(said.startswith("refused") for said in found.values()), found
    assert not (tmp_path / "marker").exists()
    files = job_named("")
    assert files.folder.stat().st_mode & 0o777 == 0o700
    assert all(not path.stat().st_mode & 0o077 for path in files.folder.iterdir())
    secret = files.key.read_text().splitlines()[1]
    assert secret not in files.script.read_text()
    for node in slurmkit.NODES:
        for process in there.pids_of(node):
            assert secret not in " ".join(process.cmdline())
            assert secret not in " ".join(process.environ().values())
    cluster.disconnect()


def test_a_cancelled_job_leaves_a_checkpoint_for_another_one(there, expected, tmp_path, capsys):
    whole, _ = expected
    cluster = connect_job()
    session = session_on(cluster, tmp_path / "run", nap_s=0.05, recovery=Recovery(checkpoint_s=1000))
    session.start()
    until(session, lambda _: step_told(session) > 20)
    assert main(["launch", "--cancel", job_named("").read_job().number]) == 0
    assert "takes a last checkpoint" in capsys.readouterr().out
    assert session.wait(DEADLINE_S) == "interrupted"
    assert "rk.resume(" in session.error
    session.close()
    wait_for(lambda: job_named("").state().phase == "ended")
    assert not job_named("").key.exists()
    # Nobody tells the system which cluster it was: the file of its log is found by the command.
    assert main(["jobs"]) == 0
    assert "ended (cancelled)" in capsys.readouterr().out
    with launch(Job(**TWO_NODES)) as again:
        session = resume(tmp_path / "run", again, network=Frail())
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, whole, restarts=0)


def test_a_run_moves_to_the_job_that_follows_when_the_time_is_over(there, tmp_path):
    """Slurm sends the signal that our script asks it for, `--signal=B:USR1@120`, when we say so."""
    cluster = launch(Job(**TWO_NODES, goes_on=True))
    weights = []
    with of_images(cluster, tmp_path / "whole") as session:
        assert session.wait(DEADLINE_S) == "finished"
        weights.append(session.network().state_dict())
    session = of_images(cluster, tmp_path / "moved")
    session.until(lambda session: step_told(session) >= 5, timeout=DEADLINE_S)
    answered(session, session.pause())
    first = job_named("").read_job().number
    there.run("scancel", "--batch", "--signal=USR1", first)
    session.until(lambda session: session.state == "moving", timeout=DEADLINE_S)
    session.until(lambda session: session.state == "paused", timeout=DEADLINE_S)
    second = job_named("").read_job().number
    assert (first, second) == job_named(first).read_job().numbers
    assert f"job {second} of slurm" in repr(session.cluster)
    assert session.leads
    session.resume()
    assert session.wait(DEADLINE_S) == "finished"
    weights.append(session.network().state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    steps, _ = session.timeline.losses()
    assert steps == list(range(len(steps)))
    assert [over.moves_to for over in session.timeline.records(RunOver)] == [second, ""]
    session.close()
    cluster.disconnect()


def test_a_session_that_moves_hears_that_the_next_job_was_cancelled(there, tmp_path):
    cluster, last = connect_job(), job_named("").read_job().number
    session = of_images(cluster, tmp_path / "run")
    session.until(lambda session: session.timeline.last(Steps), timeout=DEADLINE_S)
    answered(session, session.pause())
    there.run("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    there.run("scancel", "--batch", "--signal=USR1", last)
    session.until(lambda session: session.state == "moving", timeout=DEADLINE_S)
    with pytest.raises(ClusterGoneError, match=r"still waits: rk\.connect_job\(\) waits for it"):
        attach(tmp_path / "run")
    assert "cancelled before its cluster was there" in job_named("").cancel()
    assert session.wait(DEADLINE_S) == "interrupted"
    assert re.search(r"was cancelled\. rk\.resume\(.*rk\.launch\(", session.error)
    session.close()
    with pytest.raises(ClusterGoneError, match=r"has ended \(cancelled\).*rk\.launch\("):
        attach(tmp_path / "run")
    cluster.close()
    there.run("scontrol", "update", "nodename=n[1-2]", "state=resume")


def of_images(cluster, run, **recovery):
    """A run that was started, of a network that a job makes again without a kernel."""
    random = torch.Generator().manual_seed(3)
    images, labels = torch.rand(160, 1, 8, 8, generator=random), torch.arange(160) % 4
    session = Session(
        cluster,
        run=run,
        network=ConvNet(classes=4, width=4, seed=1),
        strategy=ER(),
        training=Training(batch=4, epochs=4, scaling="none"),
        rehearsal=Rehearsal(representatives=4, candidates=4, capacity=40),
        recovery=Recovery(checkpoint_s=1000, **recovery),
    )
    for task in split_classes(images, labels, classes_per_task=2, test=(images, labels)):
        session.submit(task)
    session.finish_stream()
    session.start()
    return session


def test_the_doctor_looks_at_the_nodes_of_a_job(there):
    doctor = [sys.executable, "-m", "rehearsal_kit.cli", "doctor", "--job", "--interface", "eth0", "--json"]
    said = there.run("salloc", "--nodes=2", *doctor, timeout=DEADLINE_S)
    found = json.loads(said[said.index("{") :])
    assert found["well"], said
    told = {finding["what"]: finding["found"] for finding in found["findings"]}
    assert told["nodes"] == "2 of 2 have told: n1, n2"
    assert f"eth0 {there.net}.12" in told["n2: interfaces"]
    assert told["n1: GPUs"].startswith("none: ")
    assert re.fullmatch(r"all 2 have met; gloo sums \d+ MiB/s", told["ranks"])
    assert told["clocks"] < "1"
    assert told["shared folder"].startswith("locks hold, a write is on disk in ")


def test_what_slurm_refuses_is_told_with_what_helps(there):
    with pytest.raises(ClusterError, match=r"sbatch. was refused: .*partition.*`sinfo -s`; give --queue"):
        launch(Job(nodes=1, queue="nowhere"))
    with pytest.raises(ClusterError, match=r"sbatch. was refused: .*processors.*ask for less of it"):
        launch(Job(nodes=3))
    with pytest.raises(ClusterError, match=r"no job '4711' of yours is known here; there are: 1, "):
        connect_job("4711")


def test_a_job_that_ends_before_its_workers_come_is_told_with_its_last_words(there):
    with pytest.raises(ClusterError, match=r"did not come up: interface 'ib7' is not there .* has: "):
        launch(Job(nodes=1, interface="ib7"))
    files = submit(Job(nodes=2))
    files.cancel()
    with pytest.raises(ClusterError, match=r"did not come up: job \d+ was cancelled"):
        connect_job(files.read_job().number)


def test_a_node_that_is_lost_for_good_takes_its_own_workers_alone(there, tmp_path):
    """The one of this job with the scheduler stays; the run goes on by itself on what is left.

    Its replay has two workers, then one, and comes to the same weights.
    """
    with launch(Job(**TWO_NODES)) as cluster, of_images(cluster, tmp_path / "run", **FEWER) as session:
        session.until(lambda session: session.timeline.last(Steps), timeout=DEADLINE_S)
        for process in there.pids_of("n2", with_slurmd=True):  # as if somebody had pulled the plug
            process.send_signal(signal.SIGKILL)
        assert session.wait(DEADLINE_S) == "finished"
        assert session.ranks == 1
        began = session.timeline.records(GenerationBegan)
        assert [(len(each.workers), each.of) for each in began] == [(2, 2), (1, 2)]
    again = RunFolder(tmp_path / "again")
    replay_run(session.run, again)
    compared = compare_runs(session.run, again)
    assert len(compared) > 2
    assert all(each.same for each in compared), compared
