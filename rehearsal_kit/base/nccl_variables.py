"""The variables by which NCCL, and torch's use of it, are told to do nothing beside what a run asks for."""

from __future__ import annotations

from pathlib import Path

NCCL_VARIABLES = {
    # Else its monitor asks the store every second while nothing is trained, and waits for it at the end.
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "NCCL_RAS_ENABLE": "0",  # it would listen on a port that is the same for everybody
}
"""What NCCL and torch's use of it are told when process groups are made."""


def flight_records(folder: str) -> dict[str, str]:
    """The variables that have torch write what it recorded of collectives into this folder, and no other."""
    path = str(Path(folder) / "nccl-rank-")
    return {"TORCH_FR_DUMP_TEMP_FILE": path, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": path}  # newer and older torch
