"""The process that owns a cluster: detached from any kernel, so that training outlives a notebook.

`cluster.py` writes its folder and starts it.
It ends when told to, when its scheduler closes, or when nobody has used it for a while.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import LocalCluster, Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.security import Security

from rehearsal_kit.host import TOPIC_PREFIX
from rehearsal_kit.run_folder import write_private

PLUGIN = "rehearsal-kit-server"
LOOPBACK = "127.0.0.1"
CHECK_S = 0.5

# Our ranks are no tasks: Dask must neither steal, retry nor profile, nor kill a worker for the memory of a
# rehearsal buffer that it knows nothing of, nor for a long call that holds the interpreter.
DASK_SETTINGS = {
    "distributed.scheduler.worker-ttl": "30 minutes",
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,
    # Dask has workers give freed memory back at once; a training step would fetch it again every time.
    "distributed.nanny.pre-spawn-environ": {
        "OMP_NUM_THREADS": "1",
        "MALLOC_TRIM_THRESHOLD_": str(2**28),
        "MALLOC_MMAP_THRESHOLD_": str(2**28),
        "GLOO_SOCKET_IFNAME": "lo",
    },
    "distributed.comm.require-encryption": True,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    "distributed.admin.low-level-log-length": 20000,
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
    def address(self) -> Path:
        """Where the cluster is, written once it is up."""
        return self.folder / "cluster.json"

    @property
    def log(self) -> Path:
        """What the server and its workers printed."""
        return self.folder / "log.txt"

    def security(self) -> Security:
        """TLS for every role; nothing unencrypted is spoken or accepted."""
        pem = str(self.key)
        roles = ("client", "scheduler", "worker")
        pairs = {f"tls_{role}_{part}": pem for role in roles for part in ("cert", "key")}
        return Security(require_encryption=True, tls_ca_file=pem, **pairs)


@dataclass(frozen=True, kw_only=True)
class ClusterOrder:
    """What the server is to start."""

    kind: str
    workers: int
    idle_timeout_s: float


@dataclass(frozen=True, kw_only=True)
class ClusterAddress:
    """Where a cluster is and which process owns it."""

    scheduler: str
    host: str
    process: int
    scratch: str
    """Where it and its workers keep temporary files, on a disk of that host; goes with them."""
    started: float
    kind: str
    workers: int


class ServerPlugin(SchedulerPlugin):
    """Knows when the cluster was last used, and when someone told it to end."""

    name = PLUGIN

    def __init__(self) -> None:
        self.stop = threading.Event()
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

    def idle_s(self) -> float:
        """Seconds since a kernel was connected or a rank told anything."""
        return 0.0 if self._clients else time.monotonic() - self._used


def tell_to_stop(dask_scheduler: Scheduler) -> None:
    """For client.run_on_scheduler: end the whole cluster."""
    plugin = dask_scheduler.plugins[PLUGIN]
    assert isinstance(plugin, ServerPlugin)  # noqa: S101 - the name is ours
    plugin.stop.set()


def serve(files: ClusterFiles, scratch: str) -> None:
    """Start what is ordered and stay until the end; leaves nothing behind but the log if it failed.

    scratch: a folder for temporary files, of this cluster alone.
    """
    order = ClusterOrder(**json.loads(files.order.read_text()))
    plugin = ServerPlugin()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: plugin.stop.set())
    with _start(order, files, scratch=scratch) as cluster:
        cluster.scheduler.add_plugin(plugin)
        _refuse_wildcards()
        address = ClusterAddress(
            scheduler=cluster.scheduler_address,
            host=socket.gethostname(),
            process=os.getpid(),
            scratch=scratch,
            started=time.time(),
            kind=order.kind,
            workers=len(cluster.workers),
        )
        write_private(files.address, json.dumps(asdict(address)))
        while not plugin.stop.wait(CHECK_S):
            if plugin.idle_s() > order.idle_timeout_s or cluster.scheduler.status.name == "closed":
                break
    shutil.rmtree(files.folder)


def _start(order: ClusterOrder, files: ClusterFiles, *, scratch: str) -> LocalCluster:
    dask.config.set(DASK_SETTINGS)
    common = {
        "n_workers": order.workers,
        "threads_per_worker": 1,
        "host": LOOPBACK,
        "protocol": "tls://",
        "security": files.security(),
        "dashboard_address": None,
        "local_directory": scratch,
        "memory_limit": 0,
        # A fresh worker imports torch before it says it is ready, not in the middle of its first call.
        "preload": ["rehearsal_kit.host"],
    }
    if order.kind == "cuda":
        # Importable only where the extra for its CUDA version is installed.
        from dask_cuda import LocalCUDACluster  # noqa: PLC0415

        cluster: LocalCluster = LocalCUDACluster(**common, rmm_pool_size=None, device_memory_limit=0)
        return cluster
    return LocalCluster(**common, processes=True)


def _refuse_wildcards() -> None:
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("0.0.0.0", "::"):  # noqa: S104
                raise RuntimeError(
                    f"process {process.pid} listens on every interface, port {connection.laddr.port}; "
                    "the cluster ends, because anybody on this network could reach it."
                )


def main() -> None:
    """The whole process; its one argument is the folder."""
    os.umask(0o077)
    # Libraries leave things in the temporary folder; in one of our own they go when we go.
    with tempfile.TemporaryDirectory(prefix="rehearsal-kit-") as scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        serve(ClusterFiles(folder=Path(sys.argv[1])), scratch)
