"""What runs on every node of a job: its workers, each with a nanny that starts it again."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from distributed import Nanny
from distributed.comm.addressing import get_address_host
from distributed.core import Status

from rehearsal_kit.base.child_processes import holds_fork_server
from rehearsal_kit.base.errors import ClusterError, said
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import Interface
from rehearsal_kit.cluster.code_folders import take_up
from rehearsal_kit.cluster.devices import choose_devices
from rehearsal_kit.cluster.gpu_workers import visible_devices
from rehearsal_kit.cluster.job_folder import JobFiles, JobOrder
from rehearsal_kit.cluster.local_cluster import Devices, settle_dask, share_imports
from rehearsal_kit.cluster.scheduler_connection import scheduler_in
from rehearsal_kit.cluster.server import LISTENERS_CHECK_S, own_scratch, require_bound
from rehearsal_kit.cluster.worker_variables import bind, worker_variables
from rehearsal_kit.jobs.node_processes import FAILURE

LOG = logging.getLogger(__name__)
APPEARS_S = 60.0
"""What a file may take to be seen on another node."""
LOOK_S, AGAIN_S = 0.5, 5.0


async def hold_workers(files: JobFiles, order: JobOrder, scratch: str) -> None:
    """Start the workers of this node, and start again whatever ends, until the scheduler is gone."""
    scheduler = await _scheduler(files)
    host = get_address_host(scheduler)
    interface = order.interface_here([host])
    devices = node_devices(order)
    bind(worker_variables(devices.kind, interface, scratch=scratch))
    settle_dask(nvml=devices.kind == "cuda" and not devices.plain)
    if devices.kind == "cpu" and holds_fork_server(scratch):
        share_imports()
    make = nanny_maker(scheduler, devices, interface, files=files, scratch=scratch)
    nannies = list(await asyncio.gather(*[make(number) for number in range(order.workers)]))
    looked = time.monotonic()
    try:
        while files.scheduler.exists():
            if await replace_closed(nannies, make, going=files.scheduler.exists):
                await asyncio.sleep(AGAIN_S)
            if time.monotonic() - looked > LISTENERS_CHECK_S:
                require_bound(interface)
                looked = time.monotonic()
            await asyncio.sleep(LOOK_S)
    except OSError:
        if files.scheduler.exists():  # else it has just gone, and nobody can be joined
            raise
    finally:
        await asyncio.gather(*[nanny.close() for nanny in nannies], return_exceptions=True)


async def replace_closed(
    nannies: list[Any], make: Callable[[int], Awaitable[Any]], *, going: Callable[[], bool]
) -> bool:
    """Start other nannies in the place of those that have closed; whether that has failed for some.

    Those are to be tried again: the other workers of this node are well, and end with this process.
    going: whether the scheduler is still there.
    """
    failed = False
    for number, nanny in enumerate(nannies):
        if nanny.status in (Status.closed, Status.failed) and going():
            LOG.warning("worker %s has closed by itself; another one takes its place", nanny.name)
            try:
                nannies[number] = await make(number)
            except Exception as error:  # whatever starting a process may raise, and what the scheduler says
                LOG.warning("it could not be started: %s", said(error))
                failed = True
    return failed


def node_devices(order: JobOrder) -> Devices:
    """What the workers of this node compute on; ClusterError where it has fewer GPUs than workers."""
    if order.kind == "cuda" and order.numbered_gpus:
        numbers = tuple(str(number) for number in range(order.workers))
        return Devices(kind="cuda", reason="by number", workers=order.workers, gpus=numbers, plain=True)
    return choose_devices(order.kind, workers=order.workers)


def nanny_maker(
    scheduler: str, devices: Devices, interface: Interface, *, files: JobFiles, scratch: str
) -> Callable[[int], Any]:
    """What makes the nanny of each number, bound to the GPU of that number if there are any."""
    host = socket.gethostname()
    alone = devices.shared or any(gpu.startswith("MIG-") for gpu in devices.gpus)

    def make(number: int) -> Nanny:
        made: Any = Nanny
        gpus = devices.gpus
        own = {"CUDA_VISIBLE_DEVICES": visible_devices(gpus, number, alone=alone)} if gpus else None
        nanny: Nanny = made(
            scheduler,
            name=f"{host}-{number}",
            nthreads=1,
            memory_limit=0,
            host=interface.address,
            protocol="tls",
            security=files.security(),
            local_directory=scratch,
            dashboard_address="127.0.0.1:0",
            dashboard=False,
            silence_logs=logging.WARNING,
            preload=["rehearsal_kit.cluster.rank_host"],
            env=own,
        )
        return nanny

    return make


async def _scheduler(files: JobFiles) -> str:
    """The address of the scheduler; ClusterError where its file is not seen here."""
    deadline = time.monotonic() + APPEARS_S
    while not files.scheduler.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{socket.gethostname()} does not see {files.scheduler}: the nodes do not share that folder; "
                "have REHEARSAL_KIT_HOME name one that they share with the login node."
            )
        await asyncio.sleep(LOOK_S)
    return scheduler_in(files.scheduler)


def main() -> None:
    """The whole process; its one argument is the folder of the job."""
    folder = Path(sys.argv[1])
    scratch = own_scratch()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # A job that is cancelled has its processes told to end all at once: the server of the job has the ranks
    # write a last checkpoint first, and then the scheduler ends, and we with it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    files = JobFiles(folder=folder)
    try:
        order = files.read_order()
        take_up(order.code)
        asyncio.run(hold_workers(files, order, scratch))
    except Exception as error:
        words = said(error)
        try:
            write_private(folder / f"{FAILURE}{socket.gethostname()}", words)
        except OSError:
            LOG.warning("%s cannot be written to", folder)
        sys.exit(f"rehearsal-kit on {socket.gethostname()}: {words}")
