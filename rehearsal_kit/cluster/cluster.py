"""Starts a Dask cluster that outlives the kernel, or connects to one that somebody else started. TLS."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
from distributed import Client

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError
from rehearsal_kit.base.limits import require_integer, require_number, require_switch
from rehearsal_kit.base.network_interfaces import interface_named
from rehearsal_kit.cluster.cluster_calls import ask_identity, ask_scheduler, ask_workers
from rehearsal_kit.cluster.code_folders import offered
from rehearsal_kit.cluster.devices import choose_devices
from rehearsal_kit.cluster.job_folder import JobFiles, files_of
from rehearsal_kit.cluster.key_files import require_private_folder
from rehearsal_kit.cluster.local_cluster import ClusterOrder
from rehearsal_kit.cluster.other_clusters import started_here, words_of_another, words_of_same_gpus
from rehearsal_kit.cluster.scheduler_connection import (
    closed_quietly,
    open_connection,
    require_encrypted,
    scheduler_in,
)
from rehearsal_kit.cluster.server import ClusterAddress, ClusterFiles, ServerRecord, tell_to_stop
from rehearsal_kit.cluster.server_process import ServerProcess, clusters_folder, lay_out, start_server
from rehearsal_kit.cluster.worker_devices import common_kind, tell_device

CONNECT_TIMEOUT_S = 30.0
REACH_TIMEOUT_S = 10.0


class Cluster:
    """A running cluster and this process's connection to it: from start_cluster() or connect()."""

    def __init__(
        self,
        client: Client,
        *,
        address: ClusterAddress,
        reason: str,
        place: Mapping[str, str],
        server: ServerProcess | None = None,
    ) -> None:
        self.client = client
        self.address = address
        self.reason = reason
        """Why these devices were chosen; or how this process came to the cluster."""
        self.place = dict(place)
        """How another process reaches it again, in values for JSON: see reach()."""
        self._server = server
        """None where somebody else started the cluster."""
        self._closed = False

    def __repr__(self) -> str:
        device = "GPU" if self.address.kind == "cuda" else "CPU process"
        what = f"{self.address.workers} x {device} at {self.address.scheduler} ({self.reason})"
        if self._server is None:
            return f"Cluster: {what}; cluster.close() disconnects and leaves it running"
        name, code = self.files.folder.name, str(self._server.record.code)
        what += f"; {code}" if code else ""
        return f"Cluster {name}: {what}; to end it: cluster.close() or {self.files.end_command}"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def files(self) -> ClusterFiles:
        """The private folder of a cluster of ours; ClusterError where somebody else started it."""
        if self._server is None:
            raise ClusterError(f"{self!r} was started by somebody else and has no folder of ours.")
        return self._server.files

    @property
    def promised(self) -> int:
        """Workers that its server starts again whenever one has ended; 0 where somebody else started it."""
        return 0 if self._server is None else self.address.workers

    @property
    def goes_on(self) -> bool:
        """Whether another job follows the one that holds it, in which its run goes on without a kernel."""
        files = None if self._server is None else self._server.files
        return isinstance(files, JobFiles) and files.read_order().goes_on

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended: one of ours, on this machine, without its server."""
        return self._server is not None and self._server.is_here and not self._server.family()

    def processes(self) -> list[psutil.Process]:
        """This process, and those of the cluster that are on this machine and can be seen from it."""
        if self._server is not None:
            return [psutil.Process(), *self._server.family()]
        found = [psutil.Process()]
        for host, process in ask_workers(self.client, tell_process).values():
            if host == socket.gethostname():
                with contextlib.suppress(psutil.Error):  # it may run inside a container
                    found.append(psutil.Process(process))
        return found

    def has_moved(self) -> bool:
        """Whether another server has taken the place of the one that this process is connected to.

        ClusterError, with the reason, where that did not come up, and where this cluster was closed here.
        """
        if self._server is None or self._closed:
            raise ClusterError("this cluster was closed here, and nobody goes over to another one.")
        if self.files.failure.exists():
            raise ClusterError(f"the next job did not come up: {self.files.failure.read_text().strip()}")
        with contextlib.suppress(ClusterError):  # there is none, or it goes this moment
            return ServerRecord.read(self.files) != self._server.record
        return False

    def reconnect(self) -> None:
        """Go over to the server that has taken the place of the one that has ended, in the same folder."""
        found = _reach_own(self.files)
        self.client, self.address, self.reason = found.client, found.address, found.reason
        self._server = found._server

    def disconnect(self) -> None:
        """Close the connection of this process and leave the cluster running, whoever started it."""
        with closed_quietly():
            self.client.close()

    def close(self) -> None:
        """End a cluster of ours with everything that runs on it; from another one only disconnect."""
        self._closed = True
        files = None if self._server is None else self.files
        try:
            if files is not None:
                files.ended()  # what a job has left that was killed is cleared away, and not waited for
            if isinstance(files, JobFiles) and not files.address.exists():
                files.cancel()  # the job that follows has not come up yet
            elif self._server is not None and not self._server.is_here:
                with contextlib.suppress(OSError, RuntimeError, ClusterGoneError):  # it may go while we ask
                    ask_scheduler(self.client, tell_to_stop)
        finally:
            self.disconnect()
        if self._server is not None:
            self._server.end()
        if isinstance(files, JobFiles) and files.going_on.exists():
            files.cancel()  # it was about to end, and another job to go on


def start_cluster(
    kind: str = "auto",
    *,
    workers: int | None = None,
    share_gpus: bool = False,
    interface: str | None = None,
    idle_timeout_s: float = 3600.0,
    code: str | Path | Sequence[str | Path] | None = None,
) -> Cluster:
    """Start a cluster on this machine: one worker per GPU, else CPU processes; says which and why.

    It is detached from this process: it goes on training when a notebook kernel dies. It ends by `close`,
    by `rehearsal-kit stop`, or after `idle_timeout_s` seconds in which nobody was connected and no rank
    told anything. It also ends if one of its processes begins to listen beyond its interface.

    Its processes get the environment of this one without what would change where they listen, what they run
    or what they compute: DASK_*, GLOO_*, NCCL_*, OMP_*, PYTHON*, TORCH_* and their like have no effect there,
    nor have Dask's configuration files. They do not run in the current folder.

    kind: "auto", "cpu" or "cuda".
    workers: how many; by default one per GPU, or 2 CPU processes, which see no GPU.
    share_gpus: whether there may be more workers than GPUs, or workers on MIG slices. NCCL connects neither:
        gradients then go over gloo, which is slower.
    interface: the one network interface it listens on, such as "ib0", for kernels on other machines; by
        default loopback, which only this machine can reach. Ports are random; Dask speaks TLS with a key of
        this cluster alone, the ranks among each other do not.
    code: folders of modules that the workers are to find, such as the one where your network is defined;
        `()` for none. By default those from which this process imports, so in a notebook the one it lies in,
        except where others may write to them. The cluster says which. Installed packages come before them.

    Warns where this process has started one before that still runs, where a GPU is in use already, and where
    GPUs are shared. Raises ClusterError where there are fewer GPUs than workers, and with the server's last
    words if it does not come up.
    """
    if already := started_here():
        warnings.warn(words_of_another(already), stacklevel=2)
    idle_timeout_s = require_number("idle_timeout_s", idle_timeout_s, low=1.0, high=1e9)
    devices = choose_devices(kind, workers=workers, share_gpus=share_gpus)
    for warning in filter(None, (devices.warning, words_of_same_gpus(devices))):
        warnings.warn(warning, stacklevel=2)
    order = ClusterOrder(
        devices=devices,
        interface=interface_named(interface).name,
        idle_timeout_s=idle_timeout_s,
        code=offered(code),
    )
    files = ClusterFiles(folder=clusters_folder() / secrets.token_hex(4))
    lay_out(files, order)
    server = start_server(files)
    try:
        return _connect_to(server, timeout_s=CONNECT_TIMEOUT_S)
    except BaseException:
        server.end()
        raise


def connect(
    scheduler_file: str | Path,
    *,
    key: str | Path | None = None,
    workers: int = 1,
    timeout_s: float = 60.0,
    insecure: bool = False,
    share_gpus: bool = False,
) -> Cluster:
    r"""Connect to a cluster that somebody else started, a batch job for example; `close` only disconnects.

    key: PEM file with certificate and private key, the same for all roles; it must be yours, mode 0600.
    workers: how many to wait for.
    timeout_s: how many seconds to wait, for an answer and for workers.
    insecure: also go to a scheduler without TLS on another machine. Everybody on that network can then run
        programs as you. On loopback that needs no asking: see to it that the machine is yours alone.
    share_gpus: whether ranks may have the same GPU, or MIG slices: gradients then go over gloo.

    The ranks listen on the interface of their worker's address, whatever GLOO_SOCKET_IFNAME says there. On
    the machines of the cluster (ADDRESS: theirs; the last command once per machine, for workers on CPUs):

        rehearsal-kit key KEY
        export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
        export DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES="[]" DASK_DISTRIBUTED__WORKER__HTTP__ROUTES="[]"
        export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="30 minutes"
        dask scheduler --scheduler-file FILE --protocol tls --host ADDRESS --port 0 --no-dashboard \
            --dashboard-address 127.0.0.1:0 --tls-ca-file KEY --tls-cert KEY --tls-key KEY
        CUDA_VISIBLE_DEVICES= dask worker --scheduler-file FILE --protocol tls --host ADDRESS --no-dashboard \
            --dashboard-address 127.0.0.1:0 --tls-ca-file KEY --tls-cert KEY --tls-key KEY \
            --name "$(hostname)" --nworkers 2 --nthreads 1 --memory-limit 0 \
            --preload rehearsal_kit.cluster.rank_host

    On machines with GPUs this in its place, which starts one worker per GPU (extra `cuda12` or `cuda13`):

        dask cuda worker --scheduler-file FILE --protocol tls --host ADDRESS --no-dashboard \
            --dashboard-address 127.0.0.1:0 --tls-ca-file KEY --tls-cert KEY --tls-key KEY \
            --name "$(hostname)" --nthreads 1 --memory-limit 0 --device-memory-limit 0 \
            --preload rehearsal_kit.cluster.rank_host

    or, without dask-cuda, one plain worker per GPU:

        for GPU in $(nvidia-smi --query-gpu=uuid --format=csv,noheader); do
            CUDA_VISIBLE_DEVICES=$GPU dask worker --scheduler-file FILE --protocol tls --host ADDRESS \
                --no-dashboard --dashboard-address 127.0.0.1:0 --tls-ca-file KEY --tls-cert KEY \
                --tls-key KEY --name "$(hostname)-$GPU" --nworkers 1 --nthreads 1 --memory-limit 0 \
                --preload rehearsal_kit.cluster.rank_host &
        done

    ClusterError where the files, the address or the key cannot be trusted, where no workers come, and where
    some have a GPU and others have none; ClusterGoneError where nobody answers.
    """
    workers = require_integer("workers", workers, low=1, high=100_000)
    timeout_s = require_number("timeout_s", timeout_s, low=0.1, high=1e6)
    insecure = require_switch("insecure", insecure)
    share_gpus = require_switch("share_gpus", share_gpus)
    file = Path(scheduler_file).expanduser().absolute()
    key = None if key is None else Path(key).expanduser().absolute()
    address = scheduler_in(file)
    require_encrypted(address, key=key, insecure=insecure)
    client = open_connection(address, key, timeout_s=timeout_s)
    try:
        count, kind = _wait_for_workers(client, workers, timeout_s=timeout_s)
    except BaseException:
        client.close()
        raise
    place = {"scheduler_file": str(file)}
    place |= {} if key is None else {"key": str(key)}
    place |= {"insecure": "yes"} if insecure else {}
    place |= {"share_gpus": "yes"} if share_gpus else {}
    return Cluster(
        client,
        address=ClusterAddress(scheduler=address, kind=kind, workers=count, shared_gpus=share_gpus),
        reason=f"connected through {file}",
        place=place,
    )


def reach(place: Mapping[str, str]) -> Cluster:
    """The cluster that has this `Cluster.place`, from any process of the same user.

    One that was made by start_cluster() can be ended by `close` here too.

    ClusterGoneError, which tells how the run can go on, where it does not answer or its files are gone;
    ClusterError where these cannot be trusted.
    """
    try:
        if "folder" in place:
            return _reach_own(files_of(Path(place["folder"])))
        file = Path(place["scheduler_file"])
        if not file.exists():
            raise ClusterGoneError(f"its scheduler file {file} is not there any more")
        return connect(
            file,
            key=place.get("key"),
            timeout_s=REACH_TIMEOUT_S,
            insecure="insecure" in place,
            share_gpus="share_gpus" in place,
        )
    except KeyError as error:
        raise ClusterError(f"{dict(place)} is no place of a cluster: {error} is missing.") from error
    except ClusterGoneError as error:
        another = files_of(Path(place["folder"])).another if "folder" in place else "rk.start_cluster()"
        raise ClusterGoneError(
            f"the cluster of {place.get('folder') or place['scheduler_file']} is gone: {error}. "
            f"rk.resume(run, {another}) continues the run."
        ) from error


def stop_cluster(files: ClusterFiles) -> str:
    """End a cluster that this process did not start; says in words what was done."""
    server = ServerProcess(files)
    if not server.is_here:
        try:
            _connect_to(server, timeout_s=REACH_TIMEOUT_S).close()
        except ClusterGoneError as error:
            raise ClusterGoneError(
                f"cluster {files.folder.name} cannot be told to end from here: {error}. On "
                f"{server.record.host} type: rehearsal-kit stop {files.folder.name}. That also clears away "
                "what a crash has left."
            ) from error
    elif not server.family():
        server.end()
        return f"{files.folder.name}: its process had ended already; removed what it left."
    else:
        server.end()
    return f"{files.folder.name}: stopped."


# Called through client.run, in the processes of a cluster.


def tell_process() -> tuple[str, int]:
    """The host on which this worker is, and its process number there."""
    return socket.gethostname(), os.getpid()


def _reach_own(files: ClusterFiles) -> Cluster:
    if words := files.ended():
        raise ClusterGoneError(words)
    if files.going_on.exists() and not files.address.exists():
        raise ClusterGoneError(
            "its job has ended and the next one, which goes on with the run, still waits: rk.connect_job() "
            "waits for it, and `rehearsal-kit jobs` shows where it is"
        )
    if not files.address.exists():
        raise ClusterGoneError("its folder is not there any more")
    require_private_folder(files.folder)
    server = ServerProcess(files)
    server.require_going()
    return _connect_to(server, timeout_s=REACH_TIMEOUT_S)


def _connect_to(server: ServerProcess, *, timeout_s: float) -> Cluster:
    return Cluster(
        open_connection(server.record.address.scheduler, server.files.key, timeout_s=timeout_s),
        address=server.record.address,
        reason=server.record.reason,
        place={"folder": str(server.files.folder)},
        server=server,
    )


def _wait_for_workers(client: Client, workers: int, *, timeout_s: float) -> tuple[int, str]:
    """How many there are, and what they train on."""
    with contextlib.suppress(TimeoutError):
        client.wait_for_workers(workers, timeout=timeout_s)
    count = len(ask_identity(client)["workers"])
    if count < workers:
        raise ClusterError(
            f"the scheduler has {count} of {workers} workers after {timeout_s:g} s; are `dask worker` "
            "started, with the same scheduler file and key? Their output says why not."
        )
    try:
        told = ask_workers(client, tell_device)
    except ImportError as error:
        raise ClusterError(
            f"the workers cannot import rehearsal_kit ({error}); install it where they run."
        ) from error
    return count, common_kind(told.values())
