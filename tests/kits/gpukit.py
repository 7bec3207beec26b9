"""The real dask-cuda, and our server, on a machine without GPUs: over stand-ins for NVML and cuda.core.

torch does not see these GPUs, so nothing trains on them; who gets which, and what is refused, is the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ranks import CODE

from rehearsal_kit.base.child_processes import child_environment
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import interface_named
from rehearsal_kit.cluster.cluster import Cluster, reach
from rehearsal_kit.cluster.key_files import write_key
from rehearsal_kit.cluster.local_cluster import ClusterOrder, Devices
from rehearsal_kit.cluster.probed_gpus import Probe
from rehearsal_kit.cluster.server import ClusterFiles
from rehearsal_kit.cluster.server_process import PROGRAM, clusters_folder, wait_until_up

STAND_INS = Path(__file__).parent / "fake_gpus"
PROBE = "from rehearsal_kit.cluster.gpu_probe import main; main()"


def require_dask_cuda() -> None:
    """Skip the test with the reason where there is no dask-cuda; in CI that is a failure."""
    if importlib.util.find_spec("dask_cuda") is not None:
        return
    if os.environ.get("CI"):
        pytest.fail("dask-cuda is missing, and CI must not skip its tests")
    pytest.skip("dask-cuda is missing: pip install --no-deps dask-cuda")


def variables(gpus: Sequence[Mapping[str, Any]], **others: str) -> dict[str, str]:
    """The environment of a process that finds these GPUs, whatever this machine has."""
    environ = {**child_environment(os.environ), "FAKE_GPUS": json.dumps(gpus), **others}
    return {**environ, "PYTHONPATH": os.pathsep.join(map(str, (STAND_INS, *CODE)))}


def probed(gpus: Sequence[Mapping[str, Any]], **others: str) -> Probe:
    """What the probe tells of these GPUs."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=variables(gpus, **others),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return Probe.read(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def served(devices: Devices, gpus: Sequence[Mapping[str, Any]], **others: str) -> Iterator[Cluster]:
    """A cluster of our server on these devices, in a process that finds these GPUs and other variables."""
    files = ClusterFiles(folder=clusters_folder() / secrets.token_hex(4))
    files.folder.mkdir(mode=0o700)
    write_key(files.key)
    order = ClusterOrder(devices=devices, interface=interface_named(None).name, idle_timeout_s=300)
    write_private(files.order, json.dumps(asdict(order)))
    with files.log.open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(module="cluster.server"), str(files.folder)],
            env=variables(gpus, **others),
            cwd=files.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_up(files, child)
        with reach({"folder": str(files.folder)}) as cluster:
            yield cluster
    finally:
        child.terminate()
        child.wait(20)
        shutil.rmtree(files.folder, ignore_errors=True)
