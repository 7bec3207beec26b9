"""What runs on the first node of a job: the scheduler, and one process on every node that holds its workers.

It ends as a cluster of `start_cluster` does, and when the time of the job is nearly over: then all runs take
a last checkpoint, and where that was asked for, another job follows that goes on with the run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
from distributed import LocalCluster

from rehearsal_kit.base.errors import ClusterError, said
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import Interface, interface_named, interface_towards
from rehearsal_kit.batch.system import RUNNING
from rehearsal_kit.batch.systems import SYSTEMS
from rehearsal_kit.cluster.code_folders import CodeFolders, take_up
from rehearsal_kit.cluster.job_folder import JobFiles, JobOrder
from rehearsal_kit.cluster.local_cluster import scheduler_alone
from rehearsal_kit.cluster.server import (
    ClusterAddress,
    ServerPlugin,
    ServerRecord,
    coordinator_of,
    own_scratch,
    require_bound,
    wind_down,
)
from rehearsal_kit.jobs.node_processes import NodeProcesses

LOG = logging.getLogger(__name__)
WORKERS_S = 300.0
"""What workers may take that import torch on all nodes at once from a cold parallel file system."""
LOOK_S = 0.2
LISTENERS_LOOK_S = 3.0


class AlreadyUpError(ClusterError):
    """The folder of this job is another one's, which goes on."""


class JobServer:
    """Holds the cluster of one job."""

    def __init__(self, files: JobFiles, scratch: str) -> None:
        self._began = time.monotonic()
        self._files, self._order = files, files.read_order()
        self._scratch = scratch
        self._plugin = ServerPlugin()
        self._ends = self._began + self._order.time_s - self._order.margin_s
        """When runs have to take their last checkpoint."""
        self._nodes = NodeProcesses(self._order, files.folder)

    def hear_signals(self) -> None:
        """End when told to, also when the batch system says that the time is nearly over."""

        def stop(*_: object) -> None:
            self._plugin.stop = True

        def out_of_time(*_: object) -> None:
            self._ends = -math.inf

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        signal.signal(signal.SIGUSR1, out_of_time)

    def serve(self) -> None:
        """Start what is ordered and stay until the end. What remains is the log, or why it failed."""
        try:
            self._take_over()
            with contextlib.ExitStack() as stack:
                interface, code = _interface(self._order), take_up(self._order.code)
                cluster: LocalCluster = stack.enter_context(
                    scheduler_alone(interface, security=self._files.security(), scratch=self._scratch)
                )
                stack.callback(self._nodes.end)  # they end once the file is gone, and before the scheduler
                stack.callback(self._files.scheduler.unlink, missing_ok=True)
                stack.callback(self._files.address.unlink, missing_ok=True)
                self._bring_up(cluster, interface, code)
                self._stay(cluster, interface)
                follows = self._followed(cluster)
                wind_down(cluster, self._files)
        except AlreadyUpError:
            raise
        except BaseException as error:
            write_private(self._files.failure, f"{said(error)}\n")
            self._files.key.unlink(missing_ok=True)
            raise
        if not follows:
            self._files.key.unlink(missing_ok=True)

    def _take_over(self) -> None:
        """Enter this job as the newest of its folder; ClusterError where another one still runs there."""
        system, record = SYSTEMS[self._order.system], self._files.read_job()
        number = system.here()
        if self._files.address.exists() and record.number not in ("", number):
            if system.state(record.number).phase == RUNNING:
                raise AlreadyUpError(
                    f"job {record.number} holds a cluster in {self._files.folder} already, so that this one "
                    "ends; for a second one, launch again."
                )
            self._files.address.unlink()  # it was killed before it could
        if number not in record.numbers:  # somebody has submitted the script by hand
            self._files.write_job(replace(record, numbers=(*record.numbers, number)))
        self._files.failure.unlink(missing_ok=True)

    def _bring_up(self, cluster: Any, interface: Interface, code: CodeFolders) -> None:
        order, files = self._order, self._files
        cluster.scheduler.add_plugin(self._plugin)
        require_bound(interface, [psutil.Process()])
        write_private(files.scheduler, json.dumps({"address": cluster.scheduler_address}))
        self._nodes.start()
        self._await_workers(cluster)
        self._plugin.begin()
        number = SYSTEMS[order.system].here()
        record = ServerRecord(
            address=ClusterAddress(
                scheduler=cluster.scheduler_address, kind=order.kind, workers=order.nodes * order.workers
            ),
            reason=f"job {number} of {order.system}, {order.nodes} nodes of {order.workers}",
            host=socket.gethostname(),
            process=os.getpid(),
            scratch=self._scratch,
            code=code,
            end_command=f"rehearsal-kit launch --cancel {number}",
        )
        write_private(files.address, json.dumps(asdict(record)))
        if files.going_on.exists():
            run = str(json.loads(files.going_on.read_text())["run"])
            files.going_on.unlink()
            self._nodes.resume(run)

    def _await_workers(self, cluster: Any) -> None:
        wanted, deadline = self._order.nodes * self._order.workers, time.monotonic() + WORKERS_S
        while (there := len(cluster.scheduler.workers)) < wanted:
            if self._plugin.stop or not self._nodes.going or time.monotonic() > deadline:
                why = "the job was told to end" if self._plugin.stop else "what they say stands above"
                raise ClusterError(
                    f"{there} of {wanted} workers came from {self._order.nodes} nodes in "
                    f"{time.monotonic() - self._began:.0f} s; {why}.{self._nodes.last_words()}"
                )
            time.sleep(LOOK_S)

    def _stay(self, cluster: Any, interface: Interface) -> None:
        """Return when the cluster is to end; ClusterError when it has to."""
        looked = time.monotonic()
        while not self._plugin.stop and time.monotonic() < self._ends:
            if (
                self._plugin.idle_s() > self._order.idle_timeout_s
                or cluster.scheduler.status.name == "closed"
            ):
                return
            if not self._nodes.going:
                raise ClusterError(f"the processes on all nodes have ended.{self._nodes.last_words()}")
            if time.monotonic() - looked > LISTENERS_LOOK_S:
                # Not what the batch system has us start here: it has ports, and passwords, of its own.
                require_bound(interface, [psutil.Process()])
                looked = time.monotonic()
            time.sleep(LOOK_S)

    def _followed(self, cluster: LocalCluster) -> bool:
        """Have another job follow if that was asked for and a run goes on; whether one does."""
        order, files, coordinator = self._order, self._files, coordinator_of(cluster)
        going = coordinator.going() if coordinator else []
        if not (order.goes_on and going and time.monotonic() >= self._ends):
            return False
        system = SYSTEMS[order.system]
        try:
            write_private(files.going_on, json.dumps({"run": going[0]}))
            number = system.submit(files.script, after=system.here())
            files.write_job(replace(files.read_job(), numbers=(*files.read_job().numbers, number)))
        except (ClusterError, OSError) as error:
            LOG.error("no job follows this one, so that its run has to be resumed by hand: %s", error)
            files.going_on.unlink(missing_ok=True)
            return False
        assert coordinator is not None  # noqa: S101 - else nothing was going
        coordinator.followed_by = number
        return True


def _interface(order: JobOrder) -> Interface:
    return interface_named(order.interface) if order.interface else interface_towards(order.seen_from)


def main() -> None:
    """The whole process; its one argument is the folder of the job."""
    scratch = own_scratch()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    server = JobServer(JobFiles(folder=Path(sys.argv[1])), scratch)
    server.hear_signals()
    try:
        server.serve()
    except ClusterError as error:
        sys.exit(f"rehearsal-kit: {error}")
