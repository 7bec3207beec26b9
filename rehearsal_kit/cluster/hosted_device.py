"""The device of a rank as its host knows it: what becomes of the process on failure, and what stays on it."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from dataclasses import dataclass

import torch

from rehearsal_kit.cluster.rank_device import identity_of

EXIT_STATUS = os.EX_SOFTWARE
"""The status with which a process ends of which a rank has failed; its nanny starts another one."""


@dataclass(frozen=True, kw_only=True)
class HostedDevice:
    """Where a rank trains."""

    name: str
    """What torch calls it: cpu, cuda:0."""
    crash_only: bool
    """Whether a process ends at once of which a rank has failed. Where NCCL is, its groups may wait for ever
    to be destroyed, and what is broken stays so; a new process costs seconds."""
    card: str = ""
    """UUID and name of the card where that is known already; empty: the driver is asked."""

    @staticmethod
    def of(name: str) -> HostedDevice:
        """The device that torch calls so."""
        return HostedDevice(name=name, crash_only=torch.device(name).type == "cuda")

    def asked(self) -> str:
        """UUID and name of its card; empty for a CPU. Makes a context there, so ask where one is made anyway.

        It has to be asked before anything fails: a broken card does not answer.
        """
        if self.card or torch.device(self.name).type != "cuda":
            return self.card
        return f"{identity_of(self.name)} ({torch.cuda.get_device_properties(self.name).name})"


ON_CPU = HostedDevice.of("cpu")


def empty_device() -> None:
    """Give back what nothing uses any more: another cluster or a notebook would find the card full."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def end_process(why: str) -> None:
    """End this process now, whatever its threads, groups and devices are at; its nanny starts another."""
    with contextlib.suppress(OSError, ValueError):  # the log may be gone, or closed
        print(f"process {os.getpid()} ends with status {EXIT_STATUS}: {why}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(EXIT_STATUS)
