"""The batch systems there are, by name."""

from __future__ import annotations

from collections.abc import Mapping

from rehearsal_kit.batch.pbs import Pbs
from rehearsal_kit.batch.slurm import Slurm
from rehearsal_kit.batch.system import BatchSystem

SYSTEMS: Mapping[str, BatchSystem] = {"slurm": Slurm(), "pbs": Pbs()}
