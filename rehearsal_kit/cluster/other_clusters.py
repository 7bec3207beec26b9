"""The clusters of this user that run on this machine already, and who has started them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.process_identity import ProcessIdentity
from rehearsal_kit.cluster.local_cluster import ClusterOrder, Devices
from rehearsal_kit.cluster.server import ClusterFiles
from rehearsal_kit.cluster.server_process import ServerProcess, clusters_folder


def running_clusters() -> list[ClusterFiles]:
    """Clusters of this user that have not said goodbye."""
    found = [ClusterFiles(folder=path) for path in sorted(clusters_folder().iterdir())]
    return [files for files in found if files.address.exists()]


def starter_of(files: ClusterFiles) -> ProcessIdentity | None:
    """The process that has started a cluster; None where its folder does not tell, or is about to go."""
    try:
        starter: ProcessIdentity = record_of(ProcessIdentity, json.loads(files.starter.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return starter


def started_here() -> list[str]:
    """Names of the clusters that this process has started and that still run: a cell was run twice."""
    found = []
    for files in running_clusters():
        starter = starter_of(files)
        with contextlib.suppress(ClusterError):  # it is about to go
            if starter is not None and starter.is_this and ServerProcess(files).family():
                found.append(files.folder.name)
    return found


def words_of_another(names: Sequence[str]) -> str:
    """What a person is told who starts a cluster beside these."""
    return (
        f"this process has started cluster {', '.join(names)} before, which still runs and takes memory and "
        "cores; start_cluster() starts another one beside it. To use the one that is there, keep its object "
        "(session.cluster, or rk.attach(run).cluster); to end it: cluster.close(), or rehearsal-kit stop "
        + " ".join(names)
    )


def words_of_same_gpus(devices: Devices) -> str:
    """What a person is told who starts a cluster on GPUs of another one of theirs; empty if there is none.

    Its workers hold no memory there before their first step, so NVML does not see them.
    """
    names = [
        files.folder.name
        for files in running_clusters()
        if set(_uuids(files)) & {*filter(None, devices.uuids)}
    ]
    if not names:
        return ""
    return (
        f"cluster {', '.join(names)}, which still runs, has the same GPUs, so two runs may train on each; to "
        f"end it: rehearsal-kit stop {' '.join(names)}"
    )


def _uuids(files: ClusterFiles) -> tuple[str, ...]:
    """Those of the GPUs of a cluster on this machine; none where its folder does not tell."""
    try:
        order: ClusterOrder = record_of(ClusterOrder, json.loads(files.order.read_text()))
    except (OSError, ValueError, TypeError):
        return ()
    return order.devices.uuids
