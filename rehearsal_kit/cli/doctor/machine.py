"""Whether this machine has room, and keeps others out: one function per check, which returns one finding.

None of them leaves anything behind or asks the network.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import ssl
import stat
import tempfile
import threading
from pathlib import Path

from rehearsal_kit.base.byte_units import GIB
from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.network_interfaces import interface_named, interfaces
from rehearsal_kit.buffer.memory_limit import available_bytes
from rehearsal_kit.cli.doctor.finding import Finding
from rehearsal_kit.cluster.key_files import require_private_folder, security_of, write_key
from rehearsal_kit.cluster.server_process import home_folder

NEEDED_BYTES = GIB
"""What two small ranks, a scheduler and a notebook take."""
SHARED_BYTES = GIB // 2
"""What the ranks on eight GPUs of one machine exchange through shared memory, and some more."""
ANSWER_S = 10.0
BATCH_JOBS = (
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "FLUX_JOB_ID",
    "COBALT_JOBID",
    "OAR_JOB_ID",
    "PJM_JOBID",
)


def memory_and_cores() -> Finding:
    """What is free for workers."""
    free, cores = available_bytes(), _cores()
    return Finding(
        what="memory, cores",
        found=f"{free / GIB:.1f} GiB free, {cores} core{'s' if cores > 1 else ''}",
        fix="" if free >= NEEDED_BYTES else "free some memory: two small ranks take about 1 GiB",
    )


def place() -> Finding:
    """Whether this is inside a batch job; it may be a login node if not."""
    job = next((f"{name}={os.environ[name]}" for name in BATCH_JOBS if name in os.environ), "")
    return Finding(
        what="batch job",
        found=job
        or "none: if this is a login node, others work here too; no more than 2 CPU workers, small demos",
    )


def home() -> Finding:
    """Whether keys can be kept where only their owner can read them."""
    folder = home_folder()
    try:
        if (folder / "clusters").exists():
            require_private_folder(folder / "clusters")
        lack = _keeps_no_secret(next(path for path in (folder, *folder.parents) if path.exists()))
    except (RehearsalKitError, OSError) as error:
        lack = str(error)
    return Finding(
        what="keys",
        found=lack or f"private in {folder}",
        fix="set REHEARSAL_KIT_HOME to a folder of yours that keeps Unix permissions" if lack else "",
        essential=True,
    )


def temporary_folder() -> Finding:
    """Where workers keep temporary files, and how much room is there."""
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    return Finding(
        what="temporary files",
        found=f"{free / GIB:.1f} GiB free in {folder}",
        fix="" if free >= NEEDED_BYTES else "set TMPDIR to a folder on a local disk with more room",
    )


def shared_memory(*, nccl: bool, folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 - NCCL's own
    """Whether ranks on the GPUs of one machine have room for what they exchange; containers have 64 MiB.

    nccl: whether this torch could use it.
    """
    what = "shared memory"
    try:
        room = shutil.disk_usage(folder).total
    except OSError as error:
        return Finding(what=what, found=f"none: {error}", fix=_more_shared_memory() if nccl else "")
    fix = _more_shared_memory() if nccl and room < SHARED_BYTES else ""
    return Finding(what=what, found=f"{room / GIB:.2f} GiB in {folder}", fix=fix)


def locked_memory(*, nccl: bool, limit: int | None = None) -> Finding:
    """How much memory may be locked, which InfiniBand does with all that it sends.

    nccl: whether this torch could use it. limit: in bytes, -1 for none; by default that of this process.
    """
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    free = limit in (-1, resource.RLIM_INFINITY)
    return Finding(
        what="locked memory",
        found="unlimited" if free else f"{limit / GIB:.2f} GiB",
        fix="for GPUs on several machines over InfiniBand: ulimit -l unlimited, or docker run --ulimit "
        "memlock=-1"
        if nccl and not free
        else "",
    )


def ports() -> Finding:
    """Whether random ports can be bound; and what there is to bind to."""
    there = ", ".join(f"{interface.name} {interface.address}" for interface in interfaces())
    try:
        with socket.create_server((interface_named(None).address, 0)):
            pass
    except (RehearsalKitError, OSError) as error:
        return Finding(
            what="ports",
            found=f"none can be bound on loopback: {error}",
            fix="bring the loopback interface up, or ask who runs this machine",
            essential=True,
        )
    return Finding(
        what="ports", found=f"random ones, on loopback unless asked; interfaces: {there}", essential=True
    )


def loopback_tls() -> Finding:
    """Whether two ends with the same key find each other over TLS, as a kernel and a scheduler do."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            protocol = _shake_hands(Path(folder) / "key.pem")
    except (RehearsalKitError, OSError, ImportError) as error:
        fix = "pip install --upgrade cryptography, and Python with OpenSSL 1.1.1 or newer"
        return Finding(what="TLS", found=f"does not work: {error}", fix=fix, essential=True)
    return Finding(what="TLS", found=f"works on loopback: {protocol}, {ssl.OPENSSL_VERSION}", essential=True)


def data_plane() -> Finding:
    """What TLS does not cover."""
    return Finding(
        what="data plane",
        found="Dask speaks TLS; gloo and NCCL between the ranks are plaintext without passwords, so a run "
        "trusts every user and node that reaches its interface: loopback, or the nodes of your allocation",
    )


def _more_shared_memory() -> str:
    return "for several GPUs, about 1 GiB: docker run --shm-size=1g, or --ipc=host; else NCCL_SHM_DISABLE=1"


def _cores() -> int:
    # Not every system tells which of its cores are ours.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keeps_no_secret(folder: Path) -> str:
    """Why a new file in this folder would not be private; empty if it would be."""
    with tempfile.TemporaryDirectory(dir=folder) as private, tempfile.TemporaryFile(dir=private) as file:
        modes = [stat.S_IMODE(os.stat(private).st_mode), stat.S_IMODE(os.fstat(file.fileno()).st_mode)]
        owned = os.fstat(file.fileno()).st_uid == os.getuid()
    if not owned or any(mode & 0o077 for mode in modes):
        return f"{folder} is on a file system that does not keep permissions"
    return ""


def _shake_hands(key: Path) -> str:
    write_key(key)
    security = security_of(key)
    listening = security.get_listen_args("scheduler")["ssl_context"]
    calling = security.get_connection_args("client")["ssl_context"]
    with socket.create_server((interface_named(None).address, 0)) as server:
        server.settimeout(ANSWER_S)

        def answer() -> None:
            with contextlib.suppress(OSError):  # what went wrong is told from the other end
                connection, _ = server.accept()
                connection.settimeout(ANSWER_S)
                with listening.wrap_socket(connection, server_side=True) as wrapped:
                    wrapped.sendall(b"well")

        other = threading.Thread(target=answer, name="doctor-tls", daemon=True)
        other.start()
        try:
            with (
                socket.create_connection(server.getsockname(), ANSWER_S) as connection,
                calling.wrap_socket(connection) as wrapped,
            ):
                wrapped.recv(4)
                return str(wrapped.version())
        finally:
            other.join(ANSWER_S)
