"""Distributed rehearsal-based continual learning, steered in real time from a notebook.

Names are imported when they are first used: the buffer in a plain training loop needs no Dask, and a rank no
widgets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rehearsal_kit.cluster import Cluster as Cluster
    from rehearsal_kit.cluster import start_cluster as start_cluster
    from rehearsal_kit.commands import Arrived as Arrived
    from rehearsal_kit.errors import RehearsalKitError as RehearsalKitError
    from rehearsal_kit.networks.ptychonn import PtychoNN as PtychoNN
    from rehearsal_kit.preparation import Preparation as Preparation
    from rehearsal_kit.rehearsal import DistributedBuffer as DistributedBuffer
    from rehearsal_kit.scans.opening import open_scan as open_scan
    from rehearsal_kit.scans.scan import Scan as Scan
    from rehearsal_kit.session import Session as Session
    from rehearsal_kit.settings import Rehearsal as Rehearsal
    from rehearsal_kit.settings import Training as Training
    from rehearsal_kit.strategies import ER as ER
    from rehearsal_kit.strategies import FromScratch as FromScratch
    from rehearsal_kit.strategies import Incremental as Incremental
    from rehearsal_kit.synthetic import Beamline as Beamline
    from rehearsal_kit.tasks import regions as regions
    from rehearsal_kit.timeline import Timeline as Timeline
    from rehearsal_kit.widgets.panel import dashboard as dashboard

__version__ = "0.1.0"

__all__ = [
    "ER",
    "Arrived",
    "Beamline",
    "Cluster",
    "DistributedBuffer",
    "FromScratch",
    "Incremental",
    "Preparation",
    "PtychoNN",
    "Rehearsal",
    "RehearsalKitError",
    "Scan",
    "Session",
    "Timeline",
    "Training",
    "dashboard",
    "open_scan",
    "regions",
    "start_cluster",
]

_HOMES = {
    "ER": "strategies",
    "Arrived": "commands",
    "Beamline": "synthetic",
    "Cluster": "cluster",
    "DistributedBuffer": "rehearsal",
    "FromScratch": "strategies",
    "Incremental": "strategies",
    "Preparation": "preparation",
    "PtychoNN": "networks.ptychonn",
    "Rehearsal": "settings",
    "RehearsalKitError": "errors",
    "Scan": "scans.scan",
    "Session": "session",
    "Timeline": "timeline",
    "Training": "settings",
    "dashboard": "widgets.panel",
    "open_scan": "scans.opening",
    "regions": "tasks",
    "start_cluster": "cluster",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"rehearsal_kit has no {name!r}; its public names are {', '.join(__all__)}.")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
