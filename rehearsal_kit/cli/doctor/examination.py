"""All checks of the machine."""

from __future__ import annotations

import torch

from rehearsal_kit.cli.doctor import machine, software
from rehearsal_kit.cli.doctor.finding import Finding


def examine() -> list[Finding]:
    """Every check, in the order in which the lacks are best cured."""
    return [
        software.python(),
        software.torch_build(),
        software.gpus(),
        software.nccl(),
        software.dask(),
        software.notebook(),
        software.filters(),
        software.browser(),
        machine.memory_and_cores(),
        machine.place(),
        machine.home(),
        machine.temporary_folder(),
        machine.shared_memory(nccl=bool(torch.version.cuda)),
        machine.locked_memory(nccl=bool(torch.version.cuda)),
        machine.ports(),
        machine.loopback_tls(),
        machine.data_plane(),
    ]
