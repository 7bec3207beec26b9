"""A real Slurm on this machine: a login node and two compute nodes, in network namespaces of their own.

The login node is where the tests run, at 10.77.N.1; the nodes n1 and n2 are at 10.77.N.11 and .12, with host
names of their own. Everything, munge's key included, lies in one temporary folder and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare")
NODES = ("n1", "n2")
CONF = """\
ClusterName=rehearsal
SlurmctldHost={host}({net}.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
EnforcePartLimits=ALL
MpiDefault=none
KillWait=15
UnkillableStepTimeout=20
SlurmdTimeout=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=work Nodes=ALL Default=YES MaxTime=60 State=UP
"""
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs, and how its commands are called."""

    folder: Path
    net: str

    def run(self, *words: str, timeout: float = DEADLINE_S) -> str:
        """What a command of Slurm says; CalledProcessError where it fails."""
        return subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, check=True, stdin=subprocess.DEVNULL
        ).stdout

    def listening(self, node: str) -> set[str]:
        """The addresses on which our processes listen on a node: Slurm's own answer only with munge's key."""
        inside = ["nsenter", f"--net=/run/netns/{name_of(node)}", "ss", "-Htlnp"]
        lines = [line.split() for line in self.run(*inside).splitlines()]
        ours = [words for words in lines if not any(theirs in words[-1] for theirs in ("slurm", "srun"))]
        return {words[3].rpartition(":")[0] for words in ours}

    def pids_of(self, node: str, *, with_slurmd: bool = False) -> list[psutil.Process]:
        """Every process in the namespace of a node, of Slurm's own daemon only if asked for."""
        place = os.stat(f"/run/netns/{name_of(node)}").st_ino
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{process.pid}/ns/net").st_ino == place:
                    found.append(process)
        return [process for process in found if with_slurmd or process.info["name"] != "slurmd"]


def lacking() -> str:
    """Why there can be no Slurm here; empty if there can."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]:
        return f"Debian's slurm-wlm and munge are not installed: {', '.join(missing)} are missing"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    made = subprocess.run(["ip", "netns", "add", "rk-probe"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "rk-probe"], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"network namespaces are not allowed here: {made.stderr.strip()}"


def search_path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def name_of(node: str) -> str:
    """Of its network namespace: of these tests alone."""
    return f"rk-{os.getpid()}-{node}"


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """Slurm, from munge to two idle nodes; at the end neither a process nor a namespace is left."""
    folder = Path(tempfile.mkdtemp(prefix="rk-slurm-"))
    folder.chmod(0o755)
    net = f"10.77.{os.getpid() % 250}"
    daemons: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network(stack, net)
        daemons.append(munge(folder))
        stack.callback(end, daemons)
        conf = configuration(folder, net)
        daemons.append(started(["slurmctld", "-D", "-f", str(conf)], folder / "ctld.out"))
        for node in NODES:
            inside = ["nsenter", f"--net=/run/netns/{name_of(node)}", "unshare", "--uts", "sh", "-c"]
            slurmd = f"hostname {node}; exec slurmd -D -N {node} -f {conf}"
            daemons.append(started([*inside, slurmd], folder / f"{node}.out"))
        made = Slurm(folder, net)
        before = os.environ.get("SLURM_CONF"), os.environ["PATH"]
        os.environ["SLURM_CONF"], os.environ["PATH"] = str(conf), search_path()
        try:
            wait_for_nodes(made)
            yield made
            with contextlib.suppress(subprocess.SubprocessError):
                made.run("scancel", "--user=root", timeout=20)
        finally:
            os.environ["PATH"] = before[1]
            if before[0] is None:
                del os.environ["SLURM_CONF"]
            for node in NODES:
                for process in made.pids_of(node):
                    with contextlib.suppress(psutil.Error):
                        process.kill()


def network(stack: contextlib.ExitStack, net: str) -> None:
    """A bridge with the login node on it, and a pair of interfaces for each node."""
    bridge = f"rk{os.getpid()}"[:15]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)

    ip("link", "add", bridge, "type", "bridge")
    stack.callback(subprocess.run, ["ip", "link", "del", bridge], capture_output=True, check=False)
    ip("addr", "add", f"{net}.1/24", "dev", bridge)
    ip("link", "set", bridge, "up")
    for number, node in enumerate(NODES, 1):
        name = name_of(node)
        ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
        outer = f"rk{os.getpid()}{node}"[:15]
        ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", outer, "master", bridge, "up")
        ip("-n", name, "addr", "add", f"{net}.1{number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")


def munge(folder: Path) -> subprocess.Popen[bytes]:
    """Its daemon, with a key of its own."""
    home = folder / "munge"
    home.mkdir(mode=0o755)
    key = home / "key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={home / name}" for option, name in files.items()]
    log = folder / "munge.out"
    daemon = started(["munged", "--foreground", "--force", f"--key-file={key}", *options], log)
    await_file(home / "socket", daemon, log)
    return daemon


def configuration(folder: Path, net: str) -> Path:
    host = socket.gethostname()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={node} NodeAddr={net}.1{number} Port=1700{number} CPUs=1 "
        "RealMemory=4000"
        for number, node in enumerate(NODES, 1)
    )
    (folder / "state").mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, net=net, port=port, folder=folder, nodes=nodes))
    return conf


def started(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as said:
        return subprocess.Popen(
            words, stdout=said, stderr=said, env={**os.environ, "PATH": search_path()}, start_new_session=True
        )


def end(daemons: list[subprocess.Popen[bytes]]) -> None:
    """The controller and the nodes first, munge last."""
    for daemon in reversed(daemons):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGTERM)
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait(5)


def await_file(path: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert daemon.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def wait_for_nodes(made: Slurm) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(subprocess.SubprocessError):
            if made.run("sinfo", "-h", "-t", "idle", "-o", "%D", timeout=10).strip() == str(len(NODES)):
                return
        logs = "\n".join(path.read_text() for path in made.folder.glob("*.out"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)
