"""What a server is told to start, and Dask's scheduler and workers as it starts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask
import distributed.utils
from distributed import LocalCluster
from distributed.security import Security

from rehearsal_kit.base.child_processes import holds_fork_server
from rehearsal_kit.base.network_interfaces import Interface
from rehearsal_kit.cluster.gpu_workers import gpu_cluster
from rehearsal_kit.cluster.worker_variables import bind, worker_variables

# Our ranks are no tasks: Dask must neither steal, retry nor profile, nor kill a worker for the memory of a
# rehearsal buffer that it knows nothing of, nor for a long call that holds the interpreter.
DASK_SETTINGS = {
    "distributed.scheduler.worker-ttl": "30 minutes",
    # Dask gives a worker up for good that is not back in 15 s, also one that was back and was lost again.
    "distributed.deploy.lost-worker-timeout": "10000 days",
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,
    # Dask's web pages know no password and no TLS; its ports remain, and answer nothing.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.comm.require-encryption": True,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    # By default fifty times a second and twice, in every process, for statistics that nobody reads: in a
    # worker each takes the interpreter from the thread that trains.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    # Nobody asks the scheduler for old events: what was told is in the run's own files.
    "distributed.admin.low-level-log-length": 100,
}


WORKER_OPTIONS: Mapping[str, Any] = {
    "threads_per_worker": 1,
    "memory_limit": 0,
    # A fresh worker imports torch before it says it is ready, not in the middle of its first call.
    "preload": ["rehearsal_kit.cluster.rank_host"],
}


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What the workers of a cluster are to compute on."""

    kind: str
    """cpu or cuda."""
    reason: str
    """Why, and with what limits, in words."""
    workers: int
    gpus: tuple[str, ...] = ()
    """GPUs to use, as CUDA_VISIBLE_DEVICES names them; none on CPUs."""
    uuids: tuple[str, ...] = ()
    """UUIDs of the same GPUs."""
    shared: bool = False
    """Whether several workers have the same GPU, or MIG slices: gradients then go over gloo."""
    plain: bool = False
    """Whether workers are bound to their GPUs by us, not by dask-cuda."""
    warning: str = ""
    """What a person should know before the first step; empty if nothing."""


@dataclass(frozen=True, kw_only=True)
class ClusterOrder:
    """What the server is to start."""

    devices: Devices
    interface: str
    """Name of the network interface that everything is bound to."""
    idle_timeout_s: float
    code: tuple[str, ...] = ()
    """Folders from which the kernel imports, and the workers may."""


def start_local(devices: Devices, interface: Interface, *, security: Security, scratch: str) -> LocalCluster:
    """Scheduler and workers on this machine, all bound to one interface and speaking TLS.

    scratch: a folder for temporary files. Changes the environment of this process, which is to be a server.
    """
    bind(worker_variables(devices.kind, interface, scratch=scratch))
    # Dask asks NVML for its own statistics; where that does not answer, it would not start.
    settle_dask(nvml=devices.kind == "cuda" and not devices.plain)
    common: dict[str, Any] = {
        **scheduler_options(interface, security=security, scratch=scratch),
        **WORKER_OPTIONS,
        "n_workers": devices.workers,
    }
    if devices.kind == "cuda":
        return gpu_cluster(devices.gpus, common, plain=devices.plain, shared=devices.shared)
    if holds_fork_server(scratch):
        share_imports()
    return LocalCluster(**common, processes=True)


def scheduler_alone(interface: Interface, *, security: Security, scratch: str) -> LocalCluster:
    """A scheduler on this machine, as `start_local` has it, whose workers come from elsewhere."""
    settle_dask(nvml=False)
    options = scheduler_options(interface, security=security, scratch=scratch)
    return LocalCluster(**options, n_workers=0, processes=True)


def settle_dask(*, nvml: bool) -> None:
    """Have Dask do in this process, and in the workers that it starts, what training needs."""
    dask.config.set({**DASK_SETTINGS, "distributed.diagnostics.nvml": nvml})


def scheduler_options(interface: Interface, *, security: Security, scratch: str) -> dict[str, Any]:
    """How a LocalCluster is made that is bound to one interface and speaks TLS."""
    return {
        "host": interface.address,
        "protocol": "tls://",
        "security": security,
        "dashboard_address": None,
        # Without a dashboard it has a port all the same, by default one that is the same for everybody.
        "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
        "local_directory": scratch,
    }


def share_imports() -> None:
    """Fork all workers from one process that has imported what they need: a killed one is back at once.

    Not on GPUs, where each worker is to see its own before its process begins; nor where the folder
    for temporary files has too long a name for a socket. There each worker imports by itself.
    """
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    # Else Dask imports pandas into this process, 20 MB of it, for a list that is replaced here.
    distributed.utils._forkserver_preload_set = True
    distributed.utils.get_mp_context().set_forkserver_preload(["rehearsal_kit.cluster.worker_imports"])
