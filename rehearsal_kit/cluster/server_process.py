"""The process that owns a cluster of ours, as any other process of this user sees it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil

from rehearsal_kit.base.child_processes import child_environment
from rehearsal_kit.base.errors import ClusterError, ClusterGoneError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.patience import Patience
from rehearsal_kit.base.process_identity import ProcessIdentity
from rehearsal_kit.base.processes import family, is_alive, words
from rehearsal_kit.cluster.key_files import require_private_folder, write_key
from rehearsal_kit.cluster.local_cluster import ClusterOrder
from rehearsal_kit.cluster.server import ClusterFiles, ServerRecord

# Not -m: the classes of a module that runs as __main__ are not those that others import from it. Dask reads
# the configuration of the site when it is imported; here it forgets that, before anything has used it.
PROGRAM = (
    "import dask.config; dask.config.refresh(paths=[], env={{}}); "
    "from rehearsal_kit.{module} import main; main()"
)
START_TIMEOUT_S = 300.0
"""What eight workers may take that import torch from a cold parallel file system."""
SAY_S = 15.0
"""A start that takes longer is said, and said again after as much."""
STOP_TIMEOUT_S = 20.0
VANISH_TIMEOUT_S = 2.0


class ServerProcess:
    """Finds the server of a cluster that is up, and ends it."""

    def __init__(self, files: ClusterFiles, *, child: subprocess.Popen[bytes] | None = None) -> None:
        self.files = files
        self.record = ServerRecord.read(files)
        self._child = child
        """Set where this process has started it, and so has to wait for it."""

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.record.host == socket.gethostname()

    def family(self) -> list[psutil.Process]:
        """The server and its workers, if they are here; empty if it has ended."""
        if self.is_here:
            found = family(self.record.process)
            # Its number may by now be another program's.
            if found and str(self.files.folder) in words(found[0]) and is_alive(found[0]):
                return found
        return []

    def require_going(self) -> None:
        """ClusterGoneError with its last error, if it had one, if it was here and has ended."""
        if self.is_here and not self.family():
            raise ClusterGoneError(f"its process has ended{_last_error(self.files)}")

    def end(self) -> None:
        """End it and its workers, and remove what it leaves; one elsewhere was told to, and is waited for."""
        if not self.is_here:
            self._wait_until_gone()
            return
        members = self.family()
        if members:
            with contextlib.suppress(psutil.Error):
                members[0].terminate()
        for survivor in self._left_at_the_end(members):
            with contextlib.suppress(psutil.Error):
                survivor.kill()
        if left := _left(members, is_alive, within_s=STOP_TIMEOUT_S):
            raise ClusterError(
                f"processes {', '.join(str(each.pid) for each in left)} of cluster {self.files.folder} were "
                "killed and do not end: a disk or a GPU does not answer them. Look at them by `ps -o "
                f"pid,stat,wchan -p {left[0].pid}`; `rehearsal-kit stop` again clears the rest away."
            )
        if self._child is not None:
            self._child.wait(STOP_TIMEOUT_S)
        # A dead process stays listed until its parent has asked for it: a kernel that started this cluster
        # may never do so, the system soon does.
        _left(members, psutil.Process.is_running, within_s=VANISH_TIMEOUT_S)
        self.files.clear()
        shutil.rmtree(self.record.scratch, ignore_errors=True)

    def _left_at_the_end(self, members: list[psutil.Process]) -> list[psutil.Process]:
        """Those that do not end; as long as runs write their last checkpoints, they are waited for."""
        patience = Patience(STOP_TIMEOUT_S)
        while (left := [process for process in members if is_alive(process)]) and patience.lasts(
            self._sign()
        ):
            time.sleep(0.05)
        return left

    def _sign(self) -> int:
        """Changes while the runs of this cluster end."""
        with contextlib.suppress(OSError):
            return self.files.ending.stat().st_mtime_ns
        return 0

    def _wait_until_gone(self) -> None:
        patience = Patience(STOP_TIMEOUT_S)
        while self.files.address.exists():
            if not patience.lasts(self._sign()):
                raise ClusterError(
                    f"the cluster on {self.record.host} was told to end, but {self.files.address} is "
                    "still there; look on that machine."
                )
            time.sleep(0.1)


@contextlib.contextmanager
def new_folder(files: ClusterFiles) -> Iterator[None]:
    """A private folder with a new key, into which the block writes the rest.

    ClusterError where that cannot be written; no key of a cluster that never was stays behind.
    """
    try:
        files.folder.mkdir(mode=0o700)
        write_key(files.key)
        yield
    except BaseException as error:
        shutil.rmtree(files.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise ClusterError(
                f"the files of a cluster cannot be written to {files.folder}: {error}. Make room there, or "
                "have REHEARSAL_KIT_HOME name another folder of yours; for jobs one that all nodes see."
            ) from error
        raise


def lay_out(files: ClusterFiles, order: ClusterOrder) -> None:
    """Write what the server of a new cluster reads."""
    with new_folder(files):
        write_private(files.order, json.dumps(asdict(order)))
        write_private(files.starter, json.dumps(asdict(ProcessIdentity.of_this())))


def start_server(files: ClusterFiles) -> ServerProcess:
    """Start the server that the order in this folder asks for, and wait until its cluster is up.

    ClusterError with its last words if it does not come up; nothing is then left of it.
    """
    child = _launch(files)
    try:
        wait_until_up(files, child)
        return ServerProcess(files, child=child)
    except BaseException:
        _end(child)
        shutil.rmtree(files.folder, ignore_errors=True)
        raise


def home_folder() -> Path:
    """Where the toolkit keeps what belongs to one user: REHEARSAL_KIT_HOME, else ~/.rehearsal-kit."""
    return Path(os.environ.get("REHEARSAL_KIT_HOME", "~/.rehearsal-kit")).expanduser()


def clusters_folder() -> Path:
    """Where the private folders of clusters lie; made if it is not there, ClusterError if others can look."""
    folder = home_folder() / "clusters"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private_folder(folder)
    return folder


def _launch(files: ClusterFiles) -> subprocess.Popen[bytes]:
    descriptor = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-c", PROGRAM.format(module="cluster.server"), str(files.folder)],
            env=child_environment(os.environ),
            cwd=files.folder,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a server that did not come up, with the workers it may have; no error, for another is under way."""
    members = family(child.pid)
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_TIMEOUT_S)
    for survivor in members:
        with contextlib.suppress(psutil.Error):
            survivor.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_TIMEOUT_S)


def wait_until_up(
    files: ClusterFiles,
    child: subprocess.Popen[bytes],
    *,
    timeout_s: float = START_TIMEOUT_S,
    say_s: float = SAY_S,
) -> None:
    """Wait for the server that this child is; ClusterError with its last words where it is not up in time.

    A start that takes long is told on the error stream, every `say_s` seconds.
    """
    began = said = time.monotonic()
    while not files.address.exists():
        now = time.monotonic()
        if child.poll() is not None or now - began > timeout_s:
            late = "" if child.poll() is not None else f" in {timeout_s:g} s"
            last = files.log.read_text(errors="replace").strip().splitlines()[-8:]
            raise ClusterError(f"the cluster did not start{late}; its last words:\n" + "\n".join(last))
        if now - said > say_s:
            said = now
            print(
                f"the cluster has been starting for {now - began:.0f} s, of {timeout_s:g} at most: its "
                f"workers import torch, which takes long from a slow disk; what they say is in {files.log}",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.05)


def _last_error(files: ClusterFiles) -> str:
    with contextlib.suppress(OSError):
        found = re.findall(r"^[\w.]*Error: .*", files.log.read_text(errors="replace"), re.MULTILINE)
        return f": {found[-1]}" if found else ""
    return ""


def _left(
    processes: list[psutil.Process], there: Callable[[psutil.Process], bool], *, within_s: float
) -> list[psutil.Process]:
    """Those that are still there after waiting for all to go."""
    deadline = time.monotonic() + within_s
    while (left := [process for process in processes if there(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
