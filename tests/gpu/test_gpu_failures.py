"""What goes wrong on GPUs, done on purpose on a real one."""

from __future__ import annotations

import time

import pytest
import torch
from devicekit import KIND, SUBJECTS, Slowed, image_tasks
from faultkit import (
    ASSERT,
    DEADLINE_S,
    SLOW,
    Expected,
    Fault,
    kill,
    require_whole,
    session_on,
    shared_cluster,
    until,
)

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.cluster.gpus import find_gpus
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import CheckpointKept

pytestmark = [pytest.mark.gpu, pytest.mark.cluster]
RECOVERY = Recovery(checkpoint_s=0.3, stall_s=30, wait_s=60)


@pytest.fixture(scope="module")
def cluster(gpu):
    with shared_cluster(1, kind=KIND) as cluster:
        yield cluster


def test_a_device_that_breaks_costs_a_process_and_the_run_goes_on(cluster, tmp_path):
    """A kernel reads outside of its memory: nothing else works in that process any more."""
    broken = {"kind": "break"} if KIND == "cuda" else {"kind": "fail", "text": ASSERT}
    fault = Fault(marker=str(tmp_path / "marker"), rank=0, forward=100, **broken)
    with session_on(cluster, tmp_path / "run", fault, recovery=RECOVERY) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, None, restarts=1, reason="^rank 0: .*CUDA error: device-side assert triggered")
    assert len({each.process for each in session.timeline.records(Joined)}) == 2


def test_the_memory_of_a_finished_run_is_given_back(cluster, tmp_path):
    network = ResNet(depth=18, classes=4, channels=1)  # 43 MiB, four times with its optimizer and gradients
    with session_on(
        cluster, tmp_path / "run", network=network, tasks_of=image_tasks, sizes=(8, 8, 8)
    ) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
    ((allocated, reserved),) = cluster.client.run(memory).values()
    # The workspaces of cuBLAS stay for as long as the process.
    assert allocated < 80 * MIB
    assert reserved < 120 * MIB


def memory() -> tuple[int, int]:
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


@pytest.mark.usefixtures("only_cuda")
def test_more_workers_than_gpus_are_refused_in_words():
    count, began = len(find_gpus().usable), time.monotonic()
    with pytest.raises(ClusterError, match=f"workers is {count + 1}, but here .* each worker needs one"):
        start_cluster("cuda", workers=count + 1)
    assert time.monotonic() - began < 15 * SLOW


def test_two_ranks_on_one_gpu_train_over_gloo(gpu, tmp_path, monkeypatch):
    """Asked for, they have the bits of each other, also after one of them was killed."""
    if KIND == "cuda":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", find_gpus().usable[0].visible)
    build, tasks_of = SUBJECTS["ConvNet"]

    def run_of():
        return {"network": Slowed(build()), "tasks_of": tasks_of, "sizes": (160, 160, 160)}

    with shared_cluster(2, kind=KIND, share_gpus=KIND == "cuda") as cluster:
        expected = Expected.of(cluster, tmp_path / "expected", **run_of())
        with session_on(cluster, tmp_path / "run", **run_of()) as session:
            session.start()
            until(session, lambda timeline: timeline.records(CheckpointKept))
            kill(session, 1)
            assert session.wait(DEADLINE_S) == "finished"
            require_whole(session, expected, restarts=1, reason="rank 1")
