"""What one node of a job is like, and how it meets the others: a program that runs once on every node."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.errors import said
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import Interface, interface_named, interfaces, is_loopback
from rehearsal_kit.base.process_groups import Meeting, meet
from rehearsal_kit.cluster.gpus import find_gpus

COME_S = 60.0
"""What the other nodes have to come."""
SUMMED_BYTES = 16 * MIB
"""What is summed over all nodes to see how fast that goes: the gradients of 4 million parameters."""
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What one node has told."""

    host: str
    gpus: tuple[str, ...]
    """Names and UUIDs of its GPUs."""
    no_gpus: str
    """Why there are none; empty if there are."""
    interfaces: tuple[str, ...]
    """Names and addresses."""
    clock_s: float
    """Its clock, minus that of the file system of the shared folder."""
    locks: str
    """What is wrong with locks of files there; empty if nothing."""
    fsync_ms: float
    """What a small file takes there until it is on disk."""
    ranks: int = 0
    """How many nodes it has met; 0 where it has met none."""
    backend: str = ""
    """gloo or nccl."""
    sum_mib_s: float = 0.0
    """How fast 16 MiB are summed over all of them."""
    trouble: str = ""
    """Why they have not met; empty if they have."""


def report(folder: Path, *, nodes: int, interface: str) -> NodeReport:
    """Look at this node, and meet the others in this folder. interface: "" for the only one there is."""
    host = socket.gethostname()
    found = find_gpus()
    clock, fsync = _written(folder / f"{host}.clock")
    told = NodeReport(
        host=host,
        gpus=tuple(f"{gpu.name} {gpu.uuid}" for gpu in found.usable),
        no_gpus=found.lack,
        interfaces=tuple(f"{each.name} {each.address}" for each in interfaces()),
        clock_s=clock,
        locks=_locks(folder / f"{host}.lock"),
        fsync_ms=fsync,
    )
    try:
        met = _meeting(folder, host, nodes=nodes, interface=interface, gpus=bool(found.usable))
    except Exception as error:
        met = {"trouble": said(error)}
    return NodeReport(**{**asdict(told), **met})


def _written(path: Path) -> tuple[float, float]:
    """The clock here minus that of the file system, and the milliseconds of a write until it is on disk."""
    began = time.perf_counter()
    with path.open("w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    return time.time() - path.stat().st_mtime, 1e3 * (time.perf_counter() - began)


def _locks(path: Path) -> str:
    with path.open("w") as file, path.open("w") as other:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"files cannot be locked: {error.strerror}"
        with contextlib.suppress(OSError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "two have had the same lock at once"
    return ""


def _meeting(folder: Path, host: str, *, nodes: int, interface: str, gpus: bool) -> dict[str, object]:
    write_private(folder / f"{host}.here", "")
    deadline = time.monotonic() + COME_S
    while len(there := sorted(path.stem for path in folder.glob("*.here"))) < nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(there)} of {nodes} nodes see the folder {folder}: {', '.join(there)}")
        time.sleep(0.05)
    device = "cuda:0" if gpus else "cpu"
    meeting = Meeting(
        rendezvous=folder / "rendezvous",
        nonce=(folder / "nonce").read_text(),
        rank=there.index(host),
        ranks=nodes,
        device=device,
        gpu=host if gpus else "",
        address=_interface(interface).address,
    )
    with meet(meeting) as groups:
        values = torch.zeros(SUMMED_BYTES // 4, device=device)
        times = []
        for _ in range(ROUNDS):
            groups.barrier()
            began = time.perf_counter()
            groups.sum(values)[0].item()
            times.append(time.perf_counter() - began)
        rate = SUMMED_BYTES / MIB / sorted(times)[ROUNDS // 2]
        return {"ranks": groups.ranks, "backend": "nccl" if gpus else "gloo", "sum_mib_s": rate}


def _interface(name: str) -> Interface:
    beyond = [each for each in interfaces() if not is_loopback(each.address)]
    return interface_named(name) if name or not beyond else beyond[0]


def main() -> None:
    """The whole process: the folder in which the nodes meet, their number, and an interface."""
    folder, nodes, interface = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    told = report(folder, nodes=nodes, interface=interface)
    write_private(folder / f"{told.host}.json", json.dumps(asdict(told)))
