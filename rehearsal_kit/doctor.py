"""What this machine has for the toolkit, what it lacks, and the fix for each lack. Asks no network.

Every check is a function without arguments that returns one finding; none of them leaves anything behind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import ssl
import stat
import sys
import tempfile
import textwrap
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from rehearsal_kit.devices import find_gpus
from rehearsal_kit.errors import RehearsalKitError
from rehearsal_kit.interfaces import interface_named, interfaces
from rehearsal_kit.room import available_bytes
from rehearsal_kit.server_process import home_folder
from rehearsal_kit.trust import require_private_folder, security_of, write_key

PYTHON = (3, 11)
NEEDED_BYTES = 2**30
"""What two small ranks, a scheduler and a notebook take."""
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
NOTEBOOK = ("jupyterlab", "ipywidgets", "anywidget", "plotly")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    what: str
    found: str
    fix: str = ""
    """What to do; empty where nothing lacks."""
    essential: bool = False
    """Whether nothing works while it lacks."""


def examine() -> list[Finding]:
    """Every check, in the order in which the lacks are best cured."""
    return [
        python(),
        torch_build(),
        gpus(),
        dask(),
        notebook(),
        filters(),
        browser(),
        memory_and_cores(),
        place(),
        home(),
        temporary_folder(),
        ports(),
        loopback_tls(),
        data_plane(),
    ]


def well(findings: Sequence[Finding]) -> bool:
    """Whether nothing essential lacks."""
    return not any(finding.essential and finding.fix for finding in findings)


def report(findings: Sequence[Finding], *, width: int | None = None) -> str:
    """One line for each finding: what, found, fix; longer ones go on below."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    column = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok" if not finding.fix else "LACK" if finding.essential else "note"
        text = f"{mark:4}  {finding.what:{column}}  {finding.found}"
        if finding.fix:
            text += f" — {finding.fix}"
        lines += textwrap.wrap(text, max(width, 40), subsequent_indent=" " * (column + 8))
    lacking = [finding.what for finding in findings if finding.essential and finding.fix]
    lines += ["", f"essential, and lacking: {', '.join(lacking)}" if lacking else "nothing essential lacks."]
    return "\n".join(lines)


def report_json(findings: Sequence[Finding]) -> str:
    """The same as JSON: {"well": ..., "findings": [{"what", "found", "fix", "essential"}]}."""
    return json.dumps({"well": well(findings), "findings": [asdict(each) for each in findings]}, indent=1)


def python() -> Finding:
    """The interpreter, and whether it is new enough."""
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}"
    old = sys.version_info < PYTHON
    fix = f"install Python {PYTHON[0]}.{PYTHON[1]} or newer" if old else ""
    return Finding(what="Python", found=found, fix=fix, essential=True)


def torch_build() -> Finding:
    """The build of torch, and whether ranks can talk to each other with it."""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    gloo = dist.is_available() and dist.is_gloo_available()
    return Finding(
        what="torch",
        found=f"{torch.__version__}, a {build} build, {'with' if gloo else 'without'} gloo",
        fix="" if gloo else "install a build of torch that has torch.distributed with gloo",
        essential=True,
    )


def gpus() -> Finding:
    """The GPUs that a worker each could have; whether dask-cuda works, or which extra is missing."""
    found = find_gpus()
    what = f"{len(found.names)}: {', '.join(found.names)}" if found.names else "none to use"
    if not found.lack:
        return Finding(what="GPUs", found=f"{what}; dask-cuda {_version('dask-cuda')}")
    without = "" if found.cure else "; training goes on CPU processes, dask-cuda is not needed"
    return Finding(what="GPUs", found=f"{what}: {found.lack}{without}", fix=found.cure)


def dask() -> Finding:
    """Dask and distributed; they go together only in the same version."""
    versions = _version("dask"), _version("distributed")
    same = versions[0] == versions[1]
    return Finding(
        what="Dask",
        found=f"dask {versions[0]}, distributed {versions[1]}",
        fix="" if same else "pip install --upgrade dask distributed, until both have the same version",
        essential=True,
    )


def notebook() -> Finding:
    """What the notebook needs."""
    missing = [name for name in NOTEBOOK if not importlib.util.find_spec(name)]
    return Finding(
        what="notebook",
        found=", ".join(f"{name} {_version(name)}" for name in NOTEBOOK),
        fix=f"pip install {' '.join(missing)}" if missing else "",
        essential=True,
    )


def filters() -> Finding:
    """Whether compressed frames of detectors can be read."""
    there = importlib.util.find_spec("hdf5plugin") is not None
    return Finding(
        what="HDF5 filters",
        found=f"h5py {_version('h5py')}, hdf5plugin {_version('hdf5plugin')}",
        fix=""
        if there
        else "pip install hdf5plugin, for scans that were written with bitshuffle, LZ4 or Blosc",
    )


def browser() -> Finding:
    """Whether JupyterLab can open a browser here."""
    try:
        name = webbrowser.get().name
    except webbrowser.Error:
        return Finding(
            what="browser",
            found="none on this machine",
            fix="rehearsal-kit lab --no-browser, and from your machine: ssh -L PORT:127.0.0.1:PORT this one",
        )
    return Finding(what="browser", found=str(name))


def memory_and_cores() -> Finding:
    """What is free for workers."""
    free, cores = available_bytes(), _cores()
    return Finding(
        what="memory, cores",
        found=f"{free / 2**30:.1f} GiB free, {cores} core{'s' if cores > 1 else ''}",
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
        found=f"{free / 2**30:.1f} GiB free in {folder}",
        fix="" if free >= NEEDED_BYTES else "set TMPDIR to a folder on a local disk with more room",
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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


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
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(ANSWER_S)

        def answer() -> None:
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
