"""Clusters on GPUs, on a machine that has none: the real dask-cuda, and ours, over stand-ins for NVML."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from dataclasses import asdict, replace

import gpukit
import pytest
import torch

from rehearsal_kit.base.errors import ClusterError, SettingsError
from rehearsal_kit.cluster.cluster import connect
from rehearsal_kit.cluster.devices import choose_devices
from rehearsal_kit.cluster.gpu_workers import visible_devices
from rehearsal_kit.cluster.gpus import Surroundings, find_gpus
from rehearsal_kit.cluster.local_cluster import Devices
from rehearsal_kit.cluster.protocol import Order

TWO = [{}, {}]
SLICED = [{"slices": ["MIG-a", "MIG-b"]}]
SITE = {
    "NCCL_SOCKET_IFNAME": "hsn",
    "GLOO_SOCKET_IFNAME": "eth0",
    "OMP_NUM_THREADS": "64",
    "CUDA_VISIBLE_DEVICES": "1",
}
"""What modules and job scripts leave, even where nothing of it was taken out before the server began."""
ORDER = Order(
    topic="rehearsal-kit/test",
    spec=b"",
    run="nowhere",
    generation=1,
    rank=0,
    ranks=1,
    rendezvous="nowhere",
    nonce="",
    lease="",
    timeout_s=60,
    device="cuda",
    shared_gpus=False,
)


def tell(dask_worker):
    """For client.run: how a worker is bound and set up."""
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *SITE)
    contexts = sys.modules["cuda.core"].Device.made if "cuda.core" in sys.modules else []
    return {
        **{name: os.environ.get(name) for name in names},
        "name": dask_worker.name,
        "process": os.getpid(),
        "address": dask_worker.address,
        "data": type(dask_worker.data).__name__,
        "limit": dask_worker.memory_manager.memory_limit,
        "preloads": [preload.name for preload in dask_worker.preloads],
        "contexts": list(contexts),
        "threads": torch.get_num_threads(),
    }


def told(cluster) -> dict:
    """What the workers tell, by name."""
    return {answer["name"]: answer for answer in cluster.client.run(tell).values()}


async def ended(order, dask_worker):
    """For client.run: how the host of a worker carries out this order."""
    from rehearsal_kit.cluster.rank_host import RankHost

    host = RankHost()
    host.setup(dask_worker)
    assert await host.start(order) == ""
    deadline = time.monotonic() + 60
    while (status := await host.status(order["topic"]))["outcome"] == "":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return status


@pytest.fixture(scope="module")
def by_dask_cuda():
    gpukit.require_dask_cuda()
    devices = Devices(kind="cuda", reason="fake", workers=2, gpus=("0", "1"))
    with gpukit.served(devices, TWO, **SITE) as cluster:
        yield cluster


@pytest.mark.cluster
def test_each_worker_sees_its_own_gpu_first_and_makes_its_context_there(by_dask_cuda):
    workers = told(by_dask_cuda)
    assert {name: worker["CUDA_VISIBLE_DEVICES"] for name, worker in workers.items()} == {0: "0,1", 1: "1,0"}
    for worker in workers.values():
        assert worker["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # else CUDA may count otherwise than NVML
        assert worker["preloads"] == ["rehearsal_kit.cluster.rank_host", "dask_cuda.initialize"]
        assert worker["contexts"] == [worker["CUDA_VISIBLE_DEVICES"]]
        assert (worker["data"], worker["limit"]) == ("dict", None)
        assert worker["address"].startswith("tls://127.0.0.1:")


@pytest.mark.cluster
def test_variables_of_the_site_do_not_win(by_dask_cuda):
    for worker in told(by_dask_cuda).values():
        assert worker["NCCL_SOCKET_IFNAME"] == "=lo"
        assert worker["GLOO_SOCKET_IFNAME"] == "lo"
        assert worker["OMP_NUM_THREADS"] == "1"
        assert worker["threads"] == 1


@pytest.mark.cluster
def test_a_worker_that_is_restarted_has_the_same_gpu_again(by_dask_cuda):
    before = told(by_dask_cuda)
    by_dask_cuda.client.restart_workers([before[1]["address"]], timeout=120)
    after = told(by_dask_cuda)
    assert after[1]["process"] != before[1]["process"]
    assert after[0]["process"] == before[0]["process"]
    assert {name: worker["CUDA_VISIBLE_DEVICES"] for name, worker in after.items()} == {0: "0,1", 1: "1,0"}


@pytest.mark.cluster
def test_a_rank_that_is_to_train_on_a_gpu_and_has_none_says_why_and_is_not_tried_again(
    by_dask_cuda, tmp_path
):
    (status, *_) = by_dask_cuda.client.run(ended, asdict(ORDER)).values()
    assert status["outcome"] == "failed"
    assert status["fatal"]
    assert "this run trains on GPUs, but a worker on" in status["error"]
    assert f"its torch ({torch.__version__}) is not built for CUDA" in status["error"]


def spoil():
    """For client.run: what a module that a network imports might do."""
    os.environ["OMP_NUM_THREADS"] = "64"


def mend():
    """For client.run."""
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.mark.cluster
def test_a_rank_compares_its_variables_with_those_it_was_to_have(by_dask_cuda):
    by_dask_cuda.client.run(spoil)
    try:
        (status, *_) = by_dask_cuda.client.run(ended, asdict(replace(ORDER, device="cpu"))).values()
    finally:
        by_dask_cuda.client.run(mend)
    assert status["fatal"]
    assert "this worker has OMP_NUM_THREADS='64' instead of '1'" in status["error"]


@pytest.mark.cluster
def test_without_dask_cuda_workers_are_bound_by_us_and_may_share():
    devices = Devices(kind="cuda", reason="fake", workers=2, gpus=("GPU-fake-0",), shared=True, plain=True)
    with gpukit.served(devices, TWO, **SITE) as cluster:
        assert (cluster.address.kind, cluster.address.shared_gpus) == ("cuda", True)
        workers = told(cluster)
    assert sorted(workers) == [0, 1]
    for worker in workers.values():
        assert worker["CUDA_VISIBLE_DEVICES"] == "GPU-fake-0"
        assert (worker["NCCL_SOCKET_IFNAME"], worker["OMP_NUM_THREADS"]) == ("=lo", "1")
        assert worker["preloads"] == ["rehearsal_kit.cluster.rank_host"]


def test_a_worker_of_ours_sees_its_own_gpu_first_and_no_other_where_they_are_shared():
    assert [visible_devices(("0", "1", "2"), number, alone=False) for number in range(3)] == [
        "0,1,2",
        "1,2,0",
        "2,0,1",
    ]
    assert [visible_devices(("MIG-a", "MIG-b"), number, alone=True) for number in range(3)] == [
        "MIG-a",
        "MIG-b",
        "MIG-a",
    ]


# What the probe tells, over the same stand-ins ------------------------------------------------------------


@pytest.fixture(scope="module")
def probe():
    """What is told of two GPUs, of one in MIG mode, and of one that a process has for itself."""
    return gpukit.probed([*TWO, *SLICED, {"processes": [[1, 2**30]], "mode": 3}])


def found(probe, cards, *, visible=None, names=("Fake GPU", "Fake GPU")):
    """What is found on a machine with these cards, where torch is a build that sees so many devices."""
    seen = replace(
        probe,
        build="13.0",
        names=names,
        uuids=tuple(f"GPU-fake-{index}" for index in range(len(names))),
        cards=cards,
        dask_cuda_lack="",
    )
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    around = Surroundings(devices=("/dev/nvidia0",), environ=environ)
    return lambda: find_gpus(around, lambda _: seen)


def test_the_probe_tells_what_nvml_says_and_torch_and_dask_cuda(probe):
    assert (probe.torch, probe.build) == (torch.__version__, torch.version.cuda or "")
    assert (probe.driver, probe.driver_cuda, probe.nvml_lack) == ("580.65", "13.0", "")
    there = importlib.util.find_spec("dask_cuda") is not None
    assert probe.dask_cuda_lack == ("" if there else "not installed")
    first, _, sliced, held = probe.cards
    assert (first.uuid, first.mode, first.used_mib, first.total_mib) == ("GPU-fake-0", "shared", 256, 81920)
    assert (held.mode, len(held.holders)) == ("exclusive", 1)
    assert held.holders[0].startswith("process 1 (")
    assert held.holders[0].endswith(", 1024 MiB)")
    assert (first.sliced, sliced.sliced, sliced.slices) == (False, True, ("MIG-a", "MIG-b"))


def test_more_workers_than_gpus_are_refused_with_both_numbers_before_anything_is_started(probe):
    find = found(probe, probe.cards[:2])
    assert choose_devices("auto", find=find).gpus == ("0", "1")
    with pytest.raises(ClusterError, match=r"workers is 3, but here are 2 CUDA devices .*give at most 2, or"):
        choose_devices("cuda", workers=3, find=find)
    shared = choose_devices("cuda", workers=3, share_gpus=True, find=find)
    assert (shared.workers, shared.gpus, shared.shared, shared.plain) == (3, ("0", "1"), True, True)
    assert "3 workers share them: gradients go over gloo, not NCCL" in shared.reason
    assert shared.warning == "3 workers share them: gradients go over gloo, not NCCL"


def test_mig_slices_are_one_worker_or_refused_in_words_or_shared_where_that_is_asked_for(probe):
    find = found(probe, probe.cards[2:3], names=("Fake GPU MIG 1g.10gb",))
    alone = choose_devices("auto", find=find)
    assert (alone.workers, alone.gpus, alone.shared) == (1, ("MIG-a",), False)
    assert "one is used: NCCL connects no MIG slices" in alone.reason
    with pytest.raises(
        ClusterError, match=r"workers is 2, but NCCL connects no MIG slices .*share_gpus=True"
    ):
        choose_devices("auto", workers=2, find=find)
    both = choose_devices("auto", share_gpus=True, find=find)
    assert (both.workers, both.gpus, both.shared, both.plain) == (2, ("MIG-a", "MIG-b"), True, True)
    asked = choose_devices("auto", find=found(probe, (), visible="MIG-b", names=("Fake GPU MIG 1g.10gb",)))
    assert asked.gpus == ("MIG-b",)


def test_one_gpu_is_one_worker_whatever_a_machine_without_any_would_have(probe):
    assert choose_devices("auto", find=found(probe, probe.cards[:1], names=("Fake GPU",))).workers == 1
    assert choose_devices("auto", find=lambda: find_gpus(Surroundings(devices=()))).workers == 2
    with pytest.raises(SettingsError, match="share_gpus is True, but kind is 'cpu'"):
        choose_devices("cpu", share_gpus=True)
    for kind in ("cpu", "auto"):
        with pytest.raises(SettingsError, match="share_gpus is 'yes'; it must be True or False"):
            choose_devices(kind, share_gpus="yes", find=lambda: pytest.fail("nobody is asked"))
    with pytest.raises(SettingsError, match="share_gpus is 'no'; it must be True or False"):
        connect("/none", share_gpus="no")
    with pytest.raises(SettingsError, match="insecure is 1; it must be True or False"):
        connect("/none", insecure=1)
