"""What a rank on a GPU does when it fails, proved without one: hosts that are told to do as on GPUs.

Processes are real, errors have the texts that people were shown; see `hostkit`.
"""

from __future__ import annotations

import pickle
import re
import time
from dataclasses import dataclass

import pytest
import torch
from faultkit import (
    ASSERT,
    DEADLINE_S,
    REHEARSAL,
    SLOW,
    TRAINING,
    Expected,
    Fault,
    gone,
    process_of,
    require_whole,
    session_on,
    shared_cluster,
    tasks,
    until,
    wait_for,
)
from hostkit import Broken, Hungry, ToldHost, networks_held
from samples import Elsewhere

import rehearsal_kit as rk
from rehearsal_kit.base.errors import RankError, SettingsError
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.cluster.cluster import tell_process
from rehearsal_kit.cluster.cluster_calls import ask_workers
from rehearsal_kit.cluster.worker_check import ANSWERED_S, check_on_worker
from rehearsal_kit.cluster.workers import known_workers, workers_in_order
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.tensor_tasks import write_task
from rehearsal_kit.learning.strategies.replay import ER, ERACE
from rehearsal_kit.rank.run_spec import RunSpec, packed_spec
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, Joined, RunOver
from rehearsal_kit.record.records import Applied
from rehearsal_kit.record.run_folder import RunFolder

pytestmark = pytest.mark.cluster
RECOVERY = Recovery(checkpoint_s=0.3, stall_s=30, wait_s=60)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return ToldHost(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def cluster(host):
    with shared_cluster() as cluster:
        cluster.client.register_plugin(host)  # the one that is there first stays
        yield cluster


@pytest.fixture(scope="module")
def expected(cluster, tmp_path_factory):
    return Expected.of(cluster, tmp_path_factory.mktemp("expected") / "run")


@pytest.fixture
def crash_only(host):
    flag = host.folder / "crash-only"
    flag.touch()
    yield
    flag.unlink()


def processes(session, generation):
    """Process of each rank of a generation, in order of rank."""
    joined = [each for each in session.timeline.records(Joined) if each.generation == generation]
    return [each.process for each in sorted(joined, key=lambda each: each.rank)]


def test_the_error_is_told_before_groups_are_destroyed_that_never_are(cluster, expected, host, tmp_path):
    """On a CPU, too: what hangs then is ended by the nanny, and nobody is told of a rank without progress."""
    fault = Fault(kind="raise", marker=str(tmp_path / "marker"), rank=1)
    (host.folder / "hang").touch()
    try:
        with session_on(cluster, tmp_path / "run", fault, recovery=RECOVERY) as session:
            session.start()
            until(session, lambda timeline: len(timeline.records(Joined)) == 4)
            (host.folder / "hang").unlink()
            assert session.wait(DEADLINE_S) == "finished"
            require_whole(
                session, expected, restarts=1, reason="^rank 1: PlannedError: planned at .*faultkit"
            )
    finally:
        (host.folder / "hang").unlink(missing_ok=True)
    assert not {*processes(session, 1)} & {*processes(session, 2)}


@pytest.mark.usefixtures("crash_only")
def test_on_gpus_all_processes_of_a_failed_generation_end_at_once(cluster, expected, host, tmp_path):
    """The one that fails tells its error first; the one that waits for ever leaves when it is given up."""
    faults = (
        Fault(kind="raise", marker=str(tmp_path / "first"), rank=1, forward=50),
        Fault(kind="sleep", marker=str(tmp_path / "second"), rank=0, forward=50, seconds=60),
    )
    with session_on(cluster, tmp_path / "run", *faults, recovery=RECOVERY) as session:
        session.start()
        first = [process_of(session, rank) for rank in (0, 1)]
        until(session, lambda timeline: timeline.records(GenerationEnded))
        ended = time.monotonic()
        wait_for(lambda: all(map(gone, first)), but="a process has stayed")
        took = time.monotonic() - ended
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="^rank 1: PlannedError: planned at .*faultkit")
    assert took < 1.5 * SLOW  # a nanny is asked after three seconds, and waits for longer
    last = processes(session, 2)
    assert not {*first} & {*last}
    assert host.left(session.run.path) == {*last}
    assert not any(cluster.client.run(networks_held).values())


def test_a_broken_device_costs_a_process_and_one_restart_each_time(cluster, expected, tmp_path):
    """The network's own errors would set its task aside; the second time the card is named."""
    faults = [
        Fault(kind="fail", marker=str(tmp_path / name), rank=1, forward=forward, text=ASSERT)
        for name, forward in (("first", 50), ("second", 51))
    ]
    with session_on(cluster, tmp_path / "run", *faults, recovery=RECOVERY) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        reason = r"^rank 1: RuntimeError: CUDA error: device-side assert triggered.* on GPU-1 \(a card\)"
        require_whole(session, expected, restarts=2, reason=reason)
    first, second, third = (processes(session, generation) for generation in (1, 2, 3))
    assert len({first[1], second[1], third[1]}) == 3
    assert gone(first[1])
    assert gone(second[1])
    once, twice = session.timeline.records(GenerationEnded)
    assert "CUDA_LAUNCH_BLOCKING" not in once.reason
    assert "a label beyond its range" in once.reason
    assert "twice" not in once.reason
    assert "GPU-1 (a card) has failed twice in a row: look at `nvidia-smi" in twice.reason


@pytest.mark.usefixtures("crash_only")
def test_without_memory_a_run_fails_at_once_with_advice_that_works_when_typed(cluster, tmp_path):
    session = session_on(cluster, tmp_path / "run", sizes=(80,), network=Hungry(6))
    session.start()
    with pytest.raises(RankError):
        session.wait(DEADLINE_S)
    (over,) = session.timeline.records(RunOver)
    assert len(session.timeline.records(GenerationBegan)) == 1  # another would come to the same
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in over.error
    assert (
        "18.5 GiB of 23.6 GiB are held by this rank, 4.0 GiB by others (nvidia-smi shows whom)" in over.error
    )
    before = written(tmp_path / "run")
    for steer, words in (
        ({"capacity": 1}, r"Steer\(capacity=1\) cannot take effect: .* Nothing was started"),
        ({"capacity": 2**40}, "cannot take effect: the buffers on one machine would take"),
        ({"strategy": ERACE(), "draws": 2}, r"Steer\(.*\) cannot take effect: ERACE has no draws"),
        ({"strategy": Blind()}, "strategy is Blind"),
    ):
        with pytest.raises(SettingsError, match=words):
            rk.resume(tmp_path / "run", cluster, network=Hungry(6), steer=steer)
    assert written(tmp_path / "run") == before
    typed = re.search(r"rk\.resume\(.*?\}\)", over.error)[0]
    again = eval(
        typed.replace("network=...", "network=network"), {"rk": rk, "cluster": cluster, "network": Hungry(6)}
    )
    with again as session:
        assert session.wait(DEADLINE_S) == "finished"
        assert {record.settings["batch"] for record in session.timeline.records(Applied)[-2:]} == {2}


@dataclass(frozen=True)
class Blind(ER):
    """A strategy of somebody's own."""


def written(folder):
    """All files of a run and when they were written last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_network_that_lies_on_a_gpu_is_sent_from_the_cpu(cluster, tmp_path):
    """Workers on CPUs could not read it; on a GPU it would lie twice."""
    network = Hungry(100)
    network.register_buffer("scale", Elsewhere(torch.ones(2)))
    with session_on(cluster, tmp_path / "run", network=network) as session:
        sent = pickle.loads(packed_spec(session._settings)).network
    assert torch.equal(sent.scale, torch.ones(2))
    assert network.scale.device.type == "cuda"


def test_a_dry_step_that_breaks_the_device_leaves_no_broken_process(cluster, host, tmp_path):
    """On a CPU nothing is broken by what a network of somebody's says, nor by an error of another type."""
    (task,) = tasks([40])
    arrived = write_task(task, tmp_path / "task.h5")
    run = RunFolder(tmp_path / "run")
    run.create()
    values = {"training": TRAINING, "rehearsal": REHEARSAL, "preparation": Preparation()}
    worker = workers_in_order(cluster)[0]
    broken = ask_workers(cluster.client, tell_process)[worker][1]

    def check(network):
        job = packed_spec(RunSpec(run=run, seed=1, strategy=ER(), network=network, **values))
        said = cluster.client.run(check_on_worker, job, [arrived], device="cpu", workers=[worker])[worker]
        assert "device-side assert triggered" in said

    check(Broken(ASSERT))
    (host.folder / "crash-only").touch()
    try:
        check(Broken(ASSERT, KeyError))
        time.sleep(2 * ANSWERED_S)  # by then a process has ended that was to end
        assert not gone(broken)
        check(Broken(ASSERT))
        wait_for(lambda: gone(broken) and worker not in known_workers(cluster))
    finally:
        (host.folder / "crash-only").unlink()
    wait_for(lambda: len(known_workers(cluster)) == 2)
