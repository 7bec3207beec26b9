"""The machine on which something was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Machine:
    """What decides how long something takes, beside the code."""

    cpus: int
    """That this process may use."""
    processor: str
    torch: str
    numpy: str
    python: str
    load: tuple[float, float, float]
    """Average number of runnable processes over 1, 5 and 15 minutes, before anything was measured."""

    @staticmethod
    def here() -> Machine:
        """This machine, now."""
        return Machine(
            cpus=len(os.sched_getaffinity(0)),
            processor=platform.machine(),
            torch=torch.__version__,
            numpy=np.__version__,
            python=platform.python_version(),
            load=os.getloadavg(),
        )

    def text(self) -> str:
        """One line."""
        load = " ".join(f"{value:.1f}" for value in self.load)
        return (
            f"machine: {self.cpus} CPUs ({self.processor}), torch {self.torch}, numpy {self.numpy}, "
            f"python {self.python}; load average before measuring {load}"
        )
