"""Distributed rehearsal-based continual learning, steered in real time from a notebook.

Names are imported when they are first used: the buffer in a plain training loop needs no Dask, and a rank no
widgets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rehearsal_kit.attaching import attach as attach
    from rehearsal_kit.attaching import resume as resume
    from rehearsal_kit.cluster import Cluster as Cluster
    from rehearsal_kit.cluster import connect as connect
    from rehearsal_kit.cluster import start_cluster as start_cluster
    from rehearsal_kit.commands import Arrived as Arrived
    from rehearsal_kit.errors import RehearsalKitError as RehearsalKitError
    from rehearsal_kit.networks.convnet import ConvNet as ConvNet
    from rehearsal_kit.networks.ptychonn import PtychoNN as PtychoNN
    from rehearsal_kit.networks.resnet import ResNet as ResNet
    from rehearsal_kit.preparation import Preparation as Preparation
    from rehearsal_kit.rehearsal import DistributedBuffer as DistributedBuffer
    from rehearsal_kit.scan_tasks import regions as regions
    from rehearsal_kit.scans.opening import open_scan as open_scan
    from rehearsal_kit.scans.scan import Scan as Scan
    from rehearsal_kit.session import Session as Session
    from rehearsal_kit.settings import Recovery as Recovery
    from rehearsal_kit.settings import Rehearsal as Rehearsal
    from rehearsal_kit.settings import Training as Training
    from rehearsal_kit.strategies.dark import DER as DER
    from rehearsal_kit.strategies.dark import DERpp as DERpp
    from rehearsal_kit.strategies.references import Cumulative as Cumulative
    from rehearsal_kit.strategies.references import FromScratch as FromScratch
    from rehearsal_kit.strategies.references import Incremental as Incremental
    from rehearsal_kit.strategies.replay import AGEM as AGEM
    from rehearsal_kit.strategies.replay import ER as ER
    from rehearsal_kit.strategies.strategy import Strategy as Strategy
    from rehearsal_kit.strategies.strategy import Term as Term
    from rehearsal_kit.synthetic import Beamline as Beamline
    from rehearsal_kit.tensor_tasks import TensorTask as TensorTask
    from rehearsal_kit.tensor_tasks import split_classes as split_classes
    from rehearsal_kit.tensor_tasks import split_instances as split_instances
    from rehearsal_kit.timeline import Timeline as Timeline
    from rehearsal_kit.widgets.panel import dashboard as dashboard

__version__ = "0.1.0"

__all__ = [
    "AGEM",
    "DER",
    "ER",
    "Arrived",
    "Beamline",
    "Cluster",
    "ConvNet",
    "Cumulative",
    "DERpp",
    "DistributedBuffer",
    "FromScratch",
    "Incremental",
    "Preparation",
    "PtychoNN",
    "Recovery",
    "Rehearsal",
    "RehearsalKitError",
    "ResNet",
    "Scan",
    "Session",
    "Strategy",
    "TensorTask",
    "Term",
    "Timeline",
    "Training",
    "attach",
    "connect",
    "dashboard",
    "open_scan",
    "regions",
    "resume",
    "split_classes",
    "split_instances",
    "start_cluster",
]

_HOMES = {
    "AGEM": "strategies.replay",
    "DER": "strategies.dark",
    "ER": "strategies.replay",
    "Arrived": "commands",
    "Beamline": "synthetic",
    "Cluster": "cluster",
    "ConvNet": "networks.convnet",
    "Cumulative": "strategies.references",
    "DERpp": "strategies.dark",
    "DistributedBuffer": "rehearsal",
    "FromScratch": "strategies.references",
    "Incremental": "strategies.references",
    "Preparation": "preparation",
    "PtychoNN": "networks.ptychonn",
    "Recovery": "settings",
    "Rehearsal": "settings",
    "RehearsalKitError": "errors",
    "ResNet": "networks.resnet",
    "Scan": "scans.scan",
    "Session": "session",
    "Strategy": "strategies.strategy",
    "TensorTask": "tensor_tasks",
    "Term": "strategies.strategy",
    "Timeline": "timeline",
    "Training": "settings",
    "attach": "attaching",
    "connect": "cluster",
    "dashboard": "widgets.panel",
    "open_scan": "scans.opening",
    "regions": "scan_tasks",
    "resume": "attaching",
    "split_classes": "tensor_tasks",
    "split_instances": "tensor_tasks",
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
