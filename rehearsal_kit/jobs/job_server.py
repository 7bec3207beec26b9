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
from rehearsal_kit.base.network_interfaces import Interface
from rehearsal_kit.batch.system import RUNNING, WAITING
from rehearsal_kit.batch.systems import SYSTEMS
from rehearsal_kit.cluster.code_folders import CodeFolders, take_up
from rehearsal_kit.cluster.job_folder import JobFiles
from rehearsal_kit.cluster.local_cluster import scheduler_alone
from rehearsal_kit.cluster.server import (
    LISTENERS_CHECK_S,
    ClusterAddress,
    ServerPlugin,
    ServerRecord,
    coordinator_of,
    own_scratch,
    require_bound,
    wind_down,
)
from rehearsal_kit.jobs.next_job import follow, waiting_run
from rehearsal_kit.jobs.node_processes import NodeProcesses

LOG = logging.getLogger(__name__)
WORKERS_S = 300.0
"""What workers may take that import torch on all nodes at once from a cold parallel file system."""
TAKE_S = 5.0
"""What another job that ends may take to give the folder back."""
FAILED_IDLE_S = 300.0
"""A job whose run was not resumed waits so long for somebody to come."""
LOOK_S = 0.2


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
        follows = taken = False
        try:
            self._take_over()
            taken = True
            with contextlib.ExitStack() as stack:
                interface = self._order.interface_here(self._order.seen_from)
                code = take_up(self._order.code)
                cluster: LocalCluster = stack.enter_context(
                    scheduler_alone(interface, security=self._files.security(), scratch=self._scratch)
                )
                stack.callback(self._nodes.end)  # they end once the file is gone, and before the scheduler
                stack.callback(self._files.scheduler.unlink, missing_ok=True)
                stack.callback(self._files.address.unlink, missing_ok=True)
                self._bring_up(cluster, interface, code)
                print(f"this cluster ends: {self._stay(cluster, interface)}", flush=True)
                follows = self._followed(cluster)
                wind_down(cluster, self._files)
        except BaseException as error:
            if taken and not follows:
                write_private(self._files.failure, f"{said(error)}\n")
            raise
        finally:
            if taken:
                self._leave(follows)

    def _leave(self, follows: bool) -> None:
        """Leave to the job that follows what it needs; else nothing but log, record and reason."""
        self._files.taken.unlink(missing_ok=True)
        if not follows:
            if self._files.going_on.exists() and not self._files.failure.exists():
                write_private(self._files.failure, "it ended before the run was under way in it.\n")
            self._files.clear()

    def _take_over(self) -> None:
        """Have the folder for this job alone; ClusterError where another one is at work in it."""
        files, system = self._files, SYSTEMS[self._order.system]
        if not files.key.exists():
            raise ClusterError(
                f"the job of {files.folder} has ended, and its key with it; launch again instead of "
                "submitting this script once more."
            )
        number, deadline = system.here(), time.monotonic() + TAKE_S
        if not number:
            raise ClusterError(f"this is no job of {self._order.system}: submit {files.script} to it.")
        while True:
            with contextlib.suppress(FileExistsError):
                with files.taken.open("x") as taken:
                    taken.write(number)
                break
            holder = ""
            with contextlib.suppress(OSError):
                holder = files.taken.read_text()
            if holder == number or (holder and system.state(holder).phase not in (RUNNING, WAITING)):
                files.taken.unlink(missing_ok=True)  # it was killed before it could
            elif time.monotonic() > deadline:
                raise ClusterError(
                    f"job {holder} holds a cluster in {files.folder} already, so that this one ends; for a "
                    "second one, launch again."
                )
            time.sleep(LOOK_S)
        for left in (files.address, files.scheduler, files.failure):
            left.unlink(missing_ok=True)
        record = files.read_job()
        if number not in record.numbers:  # somebody has submitted the script by hand
            files.write_job(replace(record, numbers=(*record.numbers, number)))

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
        )
        write_private(files.address, json.dumps(asdict(record)))
        run, _ = waiting_run(self._files)
        if run:
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

    def _stay(self, cluster: Any, interface: Interface) -> str:
        """Return when the cluster is to end, and why; ClusterError when it has to."""
        looked = time.monotonic()
        while time.monotonic() < self._ends:
            limit = self._order.idle_timeout_s
            if self._nodes.resumer_failed:
                limit = min(limit, FAILED_IDLE_S)
            if self._plugin.stop:
                return "it was told to"
            if self._plugin.idle_s() > limit:
                return f"nobody was connected and no rank told anything for {limit:g} s"
            if cluster.scheduler.status.name == "closed":
                return "its scheduler was closed"
            if not self._nodes.going:
                raise ClusterError(f"the processes on all nodes have ended.{self._nodes.last_words()}")
            if time.monotonic() - looked > LISTENERS_CHECK_S:
                # Not what the batch system has us start here: it has ports, and passwords, of its own.
                require_bound(interface, [psutil.Process()])
                looked = time.monotonic()
            time.sleep(LOOK_S)
        return "its time is nearly over"

    def _followed(self, cluster: LocalCluster) -> bool:
        """Have another job follow if that was asked for and a run goes on; whether one does."""
        if not self._order.goes_on or time.monotonic() < self._ends:
            return False
        coordinator = coordinator_of(cluster)
        going = coordinator.going() if coordinator else []
        number, why = follow(self._files, going, worked=self._plugin.worked)
        if why:
            LOG.error("no job follows this one, so that its run has to be resumed by hand: %s", why)
        if coordinator is not None:
            coordinator.followed_by, coordinator.not_followed = number, why
        return bool(number)


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
