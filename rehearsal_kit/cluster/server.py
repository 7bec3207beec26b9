"""The process that owns a cluster: detached from any kernel, so that training outlives a notebook.

`cluster.py` writes its folder and starts it.
It ends when told to, when its scheduler closes, when nobody has used it for a while, or when one of its
processes listens where others could reach it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster, Scheduler
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.security import Security
from distributed.utils import get_mp_context

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.child_processes import OF_OPTIMIZERS, holds_fork_server
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import Interface, interface_named, socket_variables, strays
from rehearsal_kit.base.process_groups import NCCL_VARIABLES, flight_records
from rehearsal_kit.base.processes import family, listeners
from rehearsal_kit.cluster.code_folders import CodeFolders, take_up
from rehearsal_kit.cluster.coordinator import PLUGIN as COORDINATOR
from rehearsal_kit.cluster.coordinator import Coordinator
from rehearsal_kit.cluster.key_files import security_of
from rehearsal_kit.cluster.protocol import TOPIC_PREFIX

LOG = logging.getLogger(__name__)
PLUGIN = "rehearsal-kit-server"
CHECK_S = 0.2
LISTENERS_CHECK_S = 3.0
LAST = -200
"""Priority of what multiprocessing does at the end of a process, after removing its own folder (-100)."""

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
    # Nobody asks the scheduler for old events: what was told is in the run's own files.
    "distributed.admin.low-level-log-length": 100,
}
# None of these is set in the environment of the server (see `child_environment`): there they would win.
# Dask has workers give freed memory back at once; a training step would fetch it again every time.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    **NCCL_VARIABLES,
}


@dataclass(frozen=True, kw_only=True)
class ClusterFiles:
    """The private folder of a cluster: its key, and where it can be reached."""

    folder: Path

    @property
    def key(self) -> Path:
        """Certificate and private key of every role, PEM."""
        return self.folder / "key.pem"

    @property
    def order(self) -> Path:
        """What to start, written by who starts it."""
        return self.folder / "order.json"

    @property
    def starter(self) -> Path:
        """Which process has started it, as JSON."""
        return self.folder / "starter.json"

    @property
    def ending(self) -> Path:
        """Touched while the runs end before the cluster does: whoever ends it waits as long."""
        return self.folder / "ending"

    @property
    def address(self) -> Path:
        """Where the cluster is, written once it is up."""
        return self.folder / "cluster.json"

    @property
    def log(self) -> Path:
        """What the server and its workers printed."""
        return self.folder / "log.txt"

    def security(self) -> Security:
        """TLS for every role; nothing unencrypted is spoken or accepted."""
        return security_of(self.key)


@dataclass(frozen=True, kw_only=True)
class ClusterOrder:
    """What the server is to start."""

    kind: str
    reason: str
    """Why these devices were chosen."""
    workers: int
    interface: str
    """Name of the network interface that everything is bound to."""
    idle_timeout_s: float
    code: tuple[str, ...] = ()
    """Folders from which the kernel imports, and the workers may."""


@dataclass(frozen=True, kw_only=True)
class ClusterAddress:
    """Where a cluster is and what it has."""

    scheduler: str
    kind: str
    workers: int


@dataclass(frozen=True, kw_only=True)
class ServerRecord:
    """What the server of a cluster tells of it once it is up."""

    address: ClusterAddress
    reason: str
    """Why these devices were chosen."""
    host: str
    process: int
    scratch: str
    """Where it and its workers keep temporary files, on a disk of that host; goes with them."""
    code: CodeFolders

    @staticmethod
    def read(files: ClusterFiles) -> ServerRecord:
        """ClusterError where there is none, or none that can be read."""
        try:
            record: ServerRecord = record_of(ServerRecord, json.loads(files.address.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"{files.folder} is not the folder of a running cluster: {error}.") from error
        return record


class ServerPlugin(SchedulerPlugin):
    """Knows when the cluster was last used, and when someone told it to end."""

    name = PLUGIN

    def __init__(self) -> None:
        self.stop = False
        """Whether the cluster is to end. No Event: a signal handler that sets one may wait for itself."""
        self._used = time.monotonic()
        self._clients: set[str] = set()

    def add_client(self, scheduler: Scheduler, client: str) -> None:
        """Called by Dask when a kernel connects."""
        self._clients.add(client)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Called by Dask when a kernel leaves or dies."""
        self._clients.discard(client)
        self._used = time.monotonic()

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by Dask for every event; records of ranks mean that somebody's training goes on."""
        if topic.startswith(TOPIC_PREFIX):
            self._used = time.monotonic()

    def begin(self) -> None:
        """The cluster is up: what it took to start does not count as idle."""
        self._used = time.monotonic()

    def idle_s(self) -> float:
        """Seconds since a kernel was connected or a rank told anything."""
        return 0.0 if self._clients else time.monotonic() - self._used


def tell_to_stop(dask_scheduler: Scheduler) -> None:
    """End the whole cluster; for client.run_on_scheduler."""
    plugin = dask_scheduler.plugins[PLUGIN]
    assert isinstance(plugin, ServerPlugin)  # noqa: S101 - the name is ours
    plugin.stop = True


def serve(files: ClusterFiles, scratch: str) -> None:
    """Start what is ordered and stay until the end; leaves nothing behind but the log if it failed.

    scratch: a folder for temporary files, of this cluster alone.
    """
    order: ClusterOrder = record_of(ClusterOrder, json.loads(files.order.read_text()))
    interface, code = interface_named(order.interface), take_up(order.code)
    plugin = ServerPlugin()

    def stop(*_: object) -> None:
        plugin.stop = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        with _start(order, files, scratch=scratch) as cluster:
            cluster.scheduler.add_plugin(plugin)
            _require_bound(interface)
            cluster.loop.add_callback(_replace_closed, cluster)
            plugin.begin()
            _tell(cluster, order, files, scratch=scratch, code=code)
            _watch(cluster, plugin, interface, idle_timeout_s=order.idle_timeout_s)
            coordinator = cluster.scheduler.plugins.get(COORDINATOR)
            if isinstance(coordinator, Coordinator):  # some kernel has started a run here
                cluster.sync(coordinator.wind_down, lambda: files.ending.touch(mode=0o600))
    except BaseException:
        files.key.unlink(missing_ok=True)  # what remains is the log, which says why
        raise
    shutil.rmtree(files.folder)


def _start(order: ClusterOrder, files: ClusterFiles, *, scratch: str) -> LocalCluster:
    interface = interface_named(order.interface)
    # The ranks meet where Dask is bound to, and nowhere else.
    variables = {**WORKER_ENVIRONMENT, **flight_records(scratch), **socket_variables(interface)}
    dask.config.set({**DASK_SETTINGS, "distributed.nanny.pre-spawn-environ": variables})
    if order.kind == "cpu" and holds_fork_server(scratch):
        _share_imports()
    common = {
        "n_workers": order.workers,
        "threads_per_worker": 1,
        "host": interface.address,
        "protocol": "tls://",
        "security": files.security(),
        "dashboard_address": None,
        # Without a dashboard it has a port all the same, by default one that is the same for everybody.
        "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
        "local_directory": scratch,
        "memory_limit": 0,
        # A fresh worker imports torch before it says it is ready, not in the middle of its first call.
        "preload": ["rehearsal_kit.cluster.rank_host"],
    }
    if order.kind == "cuda":
        # Importable only where the extra for its CUDA version is installed.
        from dask_cuda import LocalCUDACluster  # noqa: PLC0415

        cluster: LocalCluster = LocalCUDACluster(**common, rmm_pool_size=None, device_memory_limit=0)
        return cluster
    return LocalCluster(**common, processes=True)


def _share_imports() -> None:
    """Fork all workers from one process that has imported what they need: a killed one is back at once.

    Not on GPUs, where dask-cuda sets what a worker may see before its process begins; nor where the folder
    for temporary files has too long a name for a socket. There each worker imports by itself.
    """
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    get_mp_context().set_forkserver_preload(["rehearsal_kit.cluster.rank_host", OF_OPTIMIZERS])


def _tell(
    cluster: LocalCluster, order: ClusterOrder, files: ClusterFiles, *, scratch: str, code: CodeFolders
) -> None:
    record = ServerRecord(
        address=ClusterAddress(
            scheduler=cluster.scheduler_address, kind=order.kind, workers=len(cluster.workers)
        ),
        reason=order.reason,
        host=socket.gethostname(),
        process=os.getpid(),
        scratch=scratch,
        code=code,
    )
    write_private(files.address, json.dumps(asdict(record)))


def _watch(
    cluster: LocalCluster, plugin: ServerPlugin, interface: Interface, *, idle_timeout_s: float
) -> None:
    """Return when the cluster is to end; ClusterError when it has to."""
    looked = time.monotonic()
    scheduler: Any = cluster.scheduler
    while not plugin.stop and plugin.idle_s() <= idle_timeout_s and scheduler.status.name != "closed":
        if time.monotonic() - looked > LISTENERS_CHECK_S:
            _require_bound(interface)  # workers open further ports when they train
            looked = time.monotonic()
        time.sleep(CHECK_S)


async def _replace_closed(cluster: LocalCluster) -> None:
    """Start another worker for each that has closed by itself, until the cluster ends.

    A nanny brings back a process that crashed; but a worker that loses its connection, or its place at the
    scheduler, takes its nanny with it, and Dask goes on with one worker fewer.
    """
    while cluster.status == Status.running:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                LOG.warning("worker %s has closed by itself; another one takes its place", name)
                del cluster.workers[name]
                cluster.scale(len(cluster.worker_spec))  # as many as before: the missing one is started
        await asyncio.sleep(CHECK_S)


def _require_bound(interface: Interface) -> None:
    if beyond := strays(listeners(family()), interface):
        raise ClusterError(
            f"listens beyond {interface.name} ({interface.address}): {', '.join(beyond)}; the cluster ends, "
            "because others could reach it there."
        )


def main() -> None:
    """The whole process; its one argument is the folder of the cluster."""
    os.umask(0o077)
    # Libraries leave things in the temporary folder; in one of our own they go when we go. Not before the
    # fork server's own folder in it, whose end would complain of what it misses, as the last word of the log.
    scratch = tempfile.mkdtemp(prefix="rehearsal-kit-")
    Finalize(None, shutil.rmtree, args=(scratch, True), exitpriority=LAST)
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.chdir(scratch)
    serve(ClusterFiles(folder=Path(sys.argv[1])), scratch)
