"""One held-out pattern of a task, its true amplitude and phase, and what the network makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""float32 (row, column)."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """All images are float32 (row, column); phases in rad."""

    task: int
    step: int
    diffraction: Image
    """As the network sees it: prepared counts."""
    amplitude: Image
    phase: Image
    predicted_amplitude: Image
    predicted_phase: Image


def append_preview(path: Path, preview: Preview, *, after: int) -> None:
    """Add a preview to an HDF5 file as `task_<j>/after_<i>`; the true images are written once a task."""
    with h5py.File(path, "a") as file:
        task = file.require_group(f"task_{preview.task}")
        for name in ("diffraction", "amplitude", "phase"):
            if name not in task:
                task.create_dataset(name, data=getattr(preview, name), compression="gzip")
        group = task.create_group(f"after_{after}")
        group.attrs["step"] = preview.step
        for name in ("predicted_amplitude", "predicted_phase"):
            group.create_dataset(name, data=getattr(preview, name), compression="gzip")
    path.chmod(0o600)
