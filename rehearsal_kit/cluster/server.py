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
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import psutil
from distributed import LocalCluster, Scheduler
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.security import Security

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import Interface, interface_named, strays
from rehearsal_kit.base.processes import family, listeners
from rehearsal_kit.batch.system import SCRATCH
from rehearsal_kit.cluster.code_folders import CodeFolders, take_up
from rehearsal_kit.cluster.coordinator import PLUGIN as COORDINATOR
from rehearsal_kit.cluster.coordinator import Coordinator
from rehearsal_kit.cluster.key_files import security_of
from rehearsal_kit.cluster.local_cluster import ClusterOrder, start_local
from rehearsal_kit.cluster.protocol import TOPIC_PREFIX

LOG = logging.getLogger(__name__)
PLUGIN = "rehearsal-kit-server"
CHECK_S = 0.2
LISTENERS_CHECK_S = 3.0
LAST = -200
"""Priority of what multiprocessing does at the end of a process, after removing its own folder (-100)."""


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

    @property
    def going_on(self) -> Path:
        """The run with which the next cluster in this folder goes on, as JSON; not there if there is none."""
        return self.folder / "going_on.json"

    @property
    def failure(self) -> Path:
        """Why a cluster that others wait for did not come up, or ended before its time."""
        return self.folder / "failure.txt"

    @property
    def end_command(self) -> str:
        """What a person types to end it."""
        return f"rehearsal-kit stop {self.folder.name}"

    @property
    def another(self) -> str:
        """What a person types to get another one of the kind."""
        return "rk.start_cluster()"

    def ended(self) -> str:
        """That it has ended, in words, where somebody else knows that of it; empty if nobody says so."""
        return ""

    def clear(self) -> None:
        """Remove what an ended one leaves behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def security(self) -> Security:
        """TLS for every role; nothing unencrypted is spoken or accepted."""
        return security_of(self.key)


@dataclass(frozen=True, kw_only=True)
class ClusterAddress:
    """Where a cluster is and what it has."""

    scheduler: str
    kind: str
    """cpu or cuda: what every rank trains on."""
    workers: int
    shared_gpus: bool = False
    """Whether it was asked for that several workers have one GPU."""


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
        self._stepped = False
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
            told = msg.get("told") if isinstance(msg, dict) else None
            self._stepped |= isinstance(told, dict) and told.get("record") == "Steps"

    @property
    def worked(self) -> bool:
        """Whether ranks have trained here, or a kernel is connected."""
        return self._stepped or bool(self._clients)

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
        with start_local(order.devices, interface, security=files.security(), scratch=scratch) as cluster:
            cluster.scheduler.add_plugin(plugin)
            require_bound(interface)
            cluster.loop.add_callback(_replace_closed, cluster)
            plugin.begin()
            _tell(cluster, order, files, scratch=scratch, code=code)
            _watch(cluster, plugin, interface, idle_timeout_s=order.idle_timeout_s)
            wind_down(cluster, files)
    except BaseException:
        files.key.unlink(missing_ok=True)  # what remains is the log, which says why
        raise
    shutil.rmtree(files.folder)


def coordinator_of(cluster: LocalCluster) -> Coordinator | None:
    """The coordinator in the scheduler of this cluster; None where no kernel has started a run there."""
    scheduler: Any = cluster.scheduler
    found = scheduler.plugins.get(COORDINATOR)
    return found if isinstance(found, Coordinator) else None


def wind_down(cluster: LocalCluster, files: ClusterFiles) -> None:
    """Have all runs end with a checkpoint, and show whoever waits for the end that they get on with it."""
    if coordinator := coordinator_of(cluster):
        coordinator.another = files.another
        cluster.sync(coordinator.wind_down, lambda: files.ending.touch(mode=0o600))


def _tell(
    cluster: LocalCluster, order: ClusterOrder, files: ClusterFiles, *, scratch: str, code: CodeFolders
) -> None:
    record = ServerRecord(
        address=ClusterAddress(
            scheduler=cluster.scheduler_address,
            kind=order.devices.kind,
            workers=len(cluster.workers),
            shared_gpus=order.devices.shared,
        ),
        reason=order.devices.reason,
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
            require_bound(interface)  # workers open further ports when they train
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


def require_bound(interface: Interface, processes: Iterable[psutil.Process] | None = None) -> None:
    """ClusterError where one of these processes, by default all of this family, listens beyond it."""
    if beyond := strays(listeners(family() if processes is None else processes), interface):
        raise ClusterError(
            f"listens beyond {interface.name} ({interface.address}): {', '.join(beyond)}; the cluster ends, "
            "because others could reach it there."
        )


def own_scratch() -> str:
    """A folder for the temporary files of this process and those it starts, which goes with it.

    Libraries leave things in the temporary folder; this becomes that, and the current one.
    """
    os.umask(0o077)
    scratch = tempfile.mkdtemp(prefix=SCRATCH)
    # Not before the fork server's own folder in it, whose end would complain of what it misses, as the last
    # word of the log.
    Finalize(None, shutil.rmtree, args=(scratch, True), exitpriority=LAST)
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.chdir(scratch)
    return scratch


def main() -> None:
    """The whole process; its one argument is the folder of the cluster."""
    scratch = own_scratch()
    serve(ClusterFiles(folder=Path(sys.argv[1])), scratch)
