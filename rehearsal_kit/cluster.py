"""Starts a Dask cluster that outlives the kernel, and ends it: TLS, loopback, private keys."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import psutil
from distributed import Client
from distributed.security import Security

from rehearsal_kit.cluster_server import ClusterAddress, ClusterFiles, ClusterOrder, tell_to_stop
from rehearsal_kit.errors import ClusterError
from rehearsal_kit.run_folder import write_private
from rehearsal_kit.settings import require_integer, require_number

# Not -m: the classes of a module that runs as __main__ are not those that others import from it.
SERVER = "from rehearsal_kit.cluster_server import main; main()"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


class Cluster:
    """A running cluster and this process's connection to it."""

    def __init__(self, files: ClusterFiles, *, reason: str, server: subprocess.Popen[bytes]) -> None:
        self.files = files
        self._server = server
        self.address = _read_address(files)
        self.reason = reason
        """Why these devices were chosen."""
        self.client = Client(
            self.address.scheduler, security=files.security(), set_as_default=False, timeout="30s"
        )

    def __repr__(self) -> str:
        device = "GPU" if self.address.kind == "cuda" else "CPU process"
        return (
            f"Cluster {self.files.folder.name}: {self.address.workers} x {device} on {self.address.host} "
            f"({self.reason}); to end it: cluster.close() or rehearsal-kit stop {self.files.folder.name}"
        )

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def processes(self) -> list[psutil.Process]:
        """This process, the scheduler's and those of all workers on this machine."""
        return [psutil.Process(), *_family(self.files, self.address)]

    def close(self) -> None:
        """End the cluster with everything that runs on it; nothing of it is left behind."""
        family = _family(self.files, self.address)
        if family:
            with contextlib.suppress(OSError, RuntimeError):  # it may go while we ask
                self.client.run_on_scheduler(tell_to_stop)
        self.client.close()
        _wait_until_gone(family)
        self._server.wait(STOP_TIMEOUT_S)
        _remove_traces(self.files, self.address)


def start_cluster(
    kind: str = "auto", *, workers: int | None = None, idle_timeout_s: float = 3600.0
) -> Cluster:
    """Start a cluster on this machine: one worker per GPU, else CPU processes; says which and why.

    It is detached from this process: it goes on training when a notebook kernel dies. It ends by `close`,
    by `rehearsal-kit stop`, or after `idle_timeout_s` seconds in which nobody was connected and no rank
    told anything.

    kind: "auto", "cpu" or "cuda".
    workers: how many; by default one per GPU, or 2 CPU processes.

    Raises ClusterError with the server's last words if it does not come up.
    """
    require_number("idle_timeout_s", idle_timeout_s, low=1.0, high=1e9)
    chosen, reason, gpus = choose_devices(kind)
    count = require_integer("workers", workers or (gpus if chosen == "cuda" else 2), low=1, high=1024)
    files = ClusterFiles(folder=_clusters_folder() / secrets.token_hex(4))
    files.folder.mkdir(mode=0o700)
    _write_key(files.key)
    order = ClusterOrder(kind=chosen, workers=count, idle_timeout_s=idle_timeout_s)
    write_private(files.order, json.dumps(asdict(order)))
    server = _launch(files)
    try:
        _wait_until_up(files, server)
        return Cluster(files, reason=reason, server=server)
    except BaseException:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # what went wrong is to be told, not this
            server.kill()
            server.wait()
        finally:
            shutil.rmtree(files.folder, ignore_errors=True)
        raise


def choose_devices(kind: str) -> tuple[str, str, int]:
    """("cpu" or "cuda", why, number of GPUs). Asks a child process, so that no CUDA context is made here."""
    if kind not in ("auto", "cpu", "cuda"):
        raise ClusterError(f"cluster kind is {kind!r}; it must be 'auto', 'cpu' or 'cuda'.")
    if kind == "cpu":
        return "cpu", "CPU was asked for", 0
    gpus, lack = _usable_gpus()
    if gpus:
        return "cuda", f"{gpus} CUDA device{'s' if gpus > 1 else ''} found", gpus
    if kind == "cuda":
        raise ClusterError(f"no GPU can be used: {lack}.")
    return "cpu", lack, 0


def running_clusters() -> list[ClusterFiles]:
    """Clusters of this user that have not said goodbye."""
    found = [ClusterFiles(folder=path) for path in sorted(_clusters_folder().iterdir())]
    return [files for files in found if files.address.exists()]


def stop_cluster(files: ClusterFiles) -> str:
    """End a cluster that this process did not start; says in words what was done."""
    address = _read_address(files)
    family = _family(files, address)
    if address.host == socket.gethostname() and not family:
        _remove_traces(files, address)
        return f"{files.folder.name}: its process had ended already; removed what it left."
    try:
        with Client(
            address.scheduler, security=files.security(), set_as_default=False, timeout="10s"
        ) as client:
            client.run_on_scheduler(tell_to_stop)
    except OSError as error:
        if address.host != socket.gethostname():
            raise ClusterError(
                f"cluster {files.folder.name} on {address.host} does not answer: {error}."
            ) from error
    _wait_until_gone(family)
    _remove_traces(files, address)
    return f"{files.folder.name}: stopped."


def _usable_gpus() -> tuple[int, str]:
    if not glob.glob("/dev/nvidia[0-9]*"):
        return 0, "this machine shows no NVIDIA device"
    probe = "import torch, dask_cuda; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    asked = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)  # noqa: S603
    if asked.returncode:
        last = asked.stderr.strip().splitlines()[-1]
        return 0, f"{last}; install the extra that fits the driver: pip install 'rehearsal-kit[cuda13]'"
    count = int(asked.stdout)
    return count, "" if count else "this build of torch cannot use the NVIDIA device; install a CUDA build"


def _clusters_folder() -> Path:
    home = Path(os.environ.get("REHEARSAL_KIT_HOME", "~/.rehearsal-kit")).expanduser()
    folder = home / "clusters"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ClusterError(
            f"{folder} holds keys but belongs to user {status.st_uid} with mode "
            f"{stat.S_IMODE(status.st_mode):o}; it must be yours alone: chmod 700 {folder}."
        )
    return folder


def _write_key(path: Path) -> None:
    pair = Security.temporary()
    write_private(path, f"{pair.tls_client_cert}\n{pair.tls_client_key}")


def _launch(files: ClusterFiles) -> subprocess.Popen[bytes]:
    descriptor = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-c", SERVER, str(files.folder)],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def _wait_until_up(files: ClusterFiles, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not files.address.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            words = files.log.read_text(errors="replace").strip().splitlines()[-8:]
            raise ClusterError("the cluster did not start; its last words:\n" + "\n".join(words))
        time.sleep(0.05)


def _read_address(files: ClusterFiles) -> ClusterAddress:
    try:
        return ClusterAddress(**json.loads(files.address.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(f"{files.folder} is not the folder of a running cluster: {error}.") from error


def _family(files: ClusterFiles, address: ClusterAddress) -> list[psutil.Process]:
    """The server and its workers on this host; empty if it has ended or its number is another program's."""
    if address.host != socket.gethostname():
        return []
    with contextlib.suppress(psutil.Error):
        server = psutil.Process(address.process)
        if str(files.folder) in server.cmdline() and server.status() != psutil.STATUS_ZOMBIE:
            return [server, *server.children(recursive=True)]
    return []


def _wait_until_gone(family: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for survivor in left:
        survivor.kill()
    psutil.wait_procs(left, timeout=STOP_TIMEOUT_S)


def _remove_traces(files: ClusterFiles, address: ClusterAddress) -> None:
    """What a server removes itself, unless it was killed."""
    shutil.rmtree(files.folder, ignore_errors=True)
    if address.host == socket.gethostname():
        shutil.rmtree(address.scratch, ignore_errors=True)
