"""Distributed rehearsal-based continual learning, steered in real time from a notebook.

Names are imported when they are first used: the buffer in a plain training loop needs no Dask, and a rank no
widgets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rehearsal_kit.learning.networks.registry import NETWORKS as _NETWORKS
from rehearsal_kit.learning.strategies.registry import STRATEGIES as _STRATEGIES

if TYPE_CHECKING:
    from rehearsal_kit.base.errors import RehearsalKitError as RehearsalKitError
    from rehearsal_kit.base.settings import Recovery as Recovery
    from rehearsal_kit.base.settings import Rehearsal as Rehearsal
    from rehearsal_kit.base.settings import Training as Training
    from rehearsal_kit.batch.job import Job as Job
    from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer as DistributedBuffer
    from rehearsal_kit.cluster.cluster import Cluster as Cluster
    from rehearsal_kit.cluster.cluster import connect as connect
    from rehearsal_kit.cluster.cluster import start_cluster as start_cluster
    from rehearsal_kit.data.field_tasks import open_task as open_task
    from rehearsal_kit.data.preparation import Preparation as Preparation
    from rehearsal_kit.data.scan_tasks import regions as regions
    from rehearsal_kit.data.scans.mapping import read_mapping as read_mapping
    from rehearsal_kit.data.scans.opening import open_scan as open_scan
    from rehearsal_kit.data.scans.reading import ScanReading as ScanReading
    from rehearsal_kit.data.scans.scan import Scan as Scan
    from rehearsal_kit.data.simulated_beamline import Beamline as Beamline
    from rehearsal_kit.data.tensor_tasks import TensorTask as TensorTask
    from rehearsal_kit.data.tensor_tasks import split_classes as split_classes
    from rehearsal_kit.data.tensor_tasks import split_instances as split_instances
    from rehearsal_kit.jobs.launch import connect_job as connect_job
    from rehearsal_kit.jobs.launch import launch as launch
    from rehearsal_kit.learning.networks.registry import *  # noqa: F403 - all of them
    from rehearsal_kit.learning.strategies.registry import *  # noqa: F403 - all of them
    from rehearsal_kit.learning.strategies.strategy import AugmentedBatch as AugmentedBatch
    from rehearsal_kit.learning.strategies.strategy import Strategy as Strategy
    from rehearsal_kit.learning.strategies.strategy import Term as Term
    from rehearsal_kit.record.commands import Arrived as Arrived
    from rehearsal_kit.record.task_fields import TaskFields as TaskFields
    from rehearsal_kit.record.timeline import Timeline as Timeline
    from rehearsal_kit.session.attach import attach as attach
    from rehearsal_kit.session.attach import resume as resume
    from rehearsal_kit.session.session import Session as Session
    from rehearsal_kit.widgets.panel import dashboard as dashboard

__version__ = "0.1.0"

__all__ = [
    "Arrived",
    "AugmentedBatch",
    "Beamline",
    "Cluster",
    "DistributedBuffer",
    "Job",
    "Preparation",
    "Recovery",
    "Rehearsal",
    "RehearsalKitError",
    "Scan",
    "ScanReading",
    "Session",
    "Strategy",
    "TaskFields",
    "TensorTask",
    "Term",
    "Timeline",
    "Training",
    "attach",
    "connect",
    "connect_job",
    "dashboard",
    "launch",
    "open_scan",
    "open_task",
    "read_mapping",
    "regions",
    "resume",
    "split_classes",
    "split_instances",
    "start_cluster",
]
__all__ += list(_NETWORKS)
__all__ += list(_STRATEGIES)

_HOMES = {
    "Arrived": "record.commands",
    "AugmentedBatch": "learning.strategies.strategy",
    "Beamline": "data.simulated_beamline",
    "Cluster": "cluster.cluster",
    "DistributedBuffer": "buffer.distributed_buffer",
    "Preparation": "data.preparation",
    "Recovery": "base.settings",
    "Rehearsal": "base.settings",
    "RehearsalKitError": "base.errors",
    "Scan": "data.scans.scan",
    "Session": "session.session",
    "Strategy": "learning.strategies.strategy",
    "TensorTask": "data.tensor_tasks",
    "Term": "learning.strategies.strategy",
    "Timeline": "record.timeline",
    "Training": "base.settings",
    "attach": "session.attach",
    "Job": "batch.job",
    "connect": "cluster.cluster",
    "connect_job": "jobs.launch",
    "launch": "jobs.launch",
    "dashboard": "widgets.panel",
    "open_task": "data.field_tasks",
    "read_mapping": "data.scans.mapping",
    "ScanReading": "data.scans.reading",
    "TaskFields": "record.task_fields",
    "open_scan": "data.scans.opening",
    "regions": "data.scan_tasks",
    "resume": "session.attach",
    "split_classes": "data.tensor_tasks",
    "split_instances": "data.tensor_tasks",
    "start_cluster": "cluster.cluster",
    **{name: f"learning.networks.{module}" for name, module in _NETWORKS.items()},
    **{name: f"learning.strategies.{module}" for name, module in _STRATEGIES.items()},
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"rehearsal_kit has no {name!r}; its public names are {', '.join(__all__)}.")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
