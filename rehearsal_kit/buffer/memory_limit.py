"""Whether the buffers of all ranks fit into the memory of their machines."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from rehearsal_kit.base.byte_units import GIB
from rehearsal_kit.base.digests import number_of
from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.buffer.exchange import Exchange

CGROUPS = Path("/sys/fs/cgroup")
USABLE = 0.8
"""Share of the available memory that buffers may take. The rest is for samples in flight, the network, and
rows that change while a checkpoint is written: they are held twice, up to an eighth of the buffer for each of
two checkpoints, or what `for_changed_rows` allows where that is more."""
OF_FREE = 4
"""A checkpoint may take one part in so many of the memory that is free when it is taken for rows that change
before they are written. With less, training waits for the disk where rows are wide and change often."""


def share_of(capacity: int, rank: int, ranks: int) -> int:
    """How many of `capacity` samples this rank holds; the shares differ by at most one.

    SettingsError if a rank would hold none.
    """
    if capacity < ranks:
        raise SettingsError(
            f"capacity is {capacity} samples for {ranks} ranks; every rank needs room for at least one."
        )
    share, rest = divmod(capacity, ranks)
    return share + (rank < rest)


def require_possible(capacity: int, row_bytes: int, *, rank: int, ranks: int) -> None:
    """SettingsError if a rank alone could not hold its share of so many rows of at least so many bytes.

    For what can be said before the rows are known; `require_room` counts all ranks of a machine.
    """
    require_fitting(share_of(capacity, rank, ranks) * row_bytes, available_bytes())


def require_room(wanted: int, exchange: Exchange) -> int:
    """SettingsError on every rank if the ranks of any machine together want more memory than it has left.

    wanted: bytes that this rank is going to take. Returns how many ranks share this machine. Called by all
    ranks at the same point.
    """
    host = number_of(hashlib.sha256(socket.gethostname().encode()).hexdigest())
    everyone = exchange.gather([host, wanted, available_bytes()])
    for machine in {row[0] for row in everyone}:
        here = [row for row in everyone if row[0] == machine]
        require_fitting(sum(row[1] for row in here), min(row[2] for row in here))
    return sum(row[0] == host for row in everyone)


def for_changed_rows(available: int, *, ranks: int) -> int:
    """How many of the available bytes one of so many ranks on this machine may take for these."""
    return available // (OF_FREE * ranks)


def require_fitting(wanted: int, available: int) -> None:
    """SettingsError if so many bytes are more than may be taken of those available on one machine."""
    if wanted > USABLE * available:
        raise SettingsError(
            f"the buffers on one machine would take {wanted / GIB:.2f} GiB, but only "
            f"{available / GIB:.2f} GiB are free there, of which they may take {USABLE:.0%}. Lower "
            "capacity, store fields as float16 (half), or use more machines."
        )


def available_bytes(membership: Path = Path("/proc/self/cgroup"), cgroups: Path = CGROUPS) -> int:
    """Memory that processes can still take before the machine swaps or a limit of the job kills them.

    membership, cgroups: where Linux says to which control group this process belongs, and shows them.
    """
    return min([int(psutil.virtual_memory().available), *_cgroup_rests(membership, cgroups)])


def _cgroup_rests(membership: Path, cgroups: Path) -> Iterator[int]:
    # Version 2 only: a limit holds for everything below it, so each folder up to the root counts.
    with contextlib.suppress(OSError, StopIteration):
        own = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
        folder = cgroups / own.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(cgroups):
                yield from _rest(place)


def _rest(cgroup: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text())
        stat = (cgroup / "memory.stat").read_text().splitlines()
        cache = next(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
        yield limit - used + cache
