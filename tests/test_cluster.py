"""A cluster outlives who started it, and ends when it should: nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rehearsal_kit.cli import main
from rehearsal_kit.cluster import running_clusters, start_cluster, stop_cluster
from rehearsal_kit.cluster_server import ClusterFiles
from rehearsal_kit.errors import ClusterError

pytestmark = pytest.mark.cluster
DEADLINE_S = 60
KERNEL = """
import sys, time
from rehearsal_kit.cluster import start_cluster
if __name__ == "__main__":
    cluster = start_cluster("cpu", workers=1, idle_timeout_s=float(sys.argv[1]))
    print(cluster.files.folder, flush=True)
    time.sleep(600)
"""


def family_of(folder: str) -> list[psutil.Process]:
    found = [p for p in psutil.process_iter(["cmdline"]) if folder in (p.info["cmdline"] or [])]
    return [*found, *(child for process in found for child in process.children(recursive=True))]


def kernel_with_cluster(idle_timeout_s: float):
    """A process that stands for a notebook kernel, and the processes of the cluster it started."""
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(idle_timeout_s)], stdout=subprocess.PIPE, text=True
    )
    folder = kernel.stdout.readline().strip()
    return kernel, folder, family_of(folder)


def test_closing_ends_every_process_and_removes_the_keys():
    with start_cluster("cpu", workers=1) as cluster:
        family, folder = cluster.processes()[1:], cluster.files.folder
        assert len(family) >= 2
        assert folder.is_dir()
    assert not any(process.is_running() for process in family)
    assert not folder.exists()


def test_it_outlives_a_killed_kernel_and_can_be_stopped_by_another_process(capsys):
    kernel, folder, family = kernel_with_cluster(3600)
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    kernel.stdout.close()
    assert family
    assert all(process.is_running() for process in family)
    assert [str(files.folder) for files in running_clusters()] == [folder]
    before = signal.getsignal(signal.SIGTERM)
    assert main(["stop"]) == 0
    signal.signal(signal.SIGTERM, before)  # the command line sets a handler for the whole process
    assert "stopped" in capsys.readouterr().out
    assert not any(process.is_running() for process in family)
    assert not os.path.exists(folder)


def test_an_unused_cluster_ends_by_itself():
    kernel, folder, family = kernel_with_cluster(1)
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    kernel.stdout.close()
    psutil.wait_procs(family, timeout=DEADLINE_S)
    assert not any(process.is_running() for process in family)
    assert not os.path.exists(folder)


def test_what_a_killed_server_leaves_is_cleared_away():
    with start_cluster("cpu", workers=1) as cluster:
        family = cluster.processes()[1:]
        scratch = Path(cluster.address.scratch)
        family[0].kill()
        psutil.wait_procs(family, timeout=DEADLINE_S)
        (files,) = running_clusters()
        assert scratch.is_dir()
        assert "ended already" in stop_cluster(files)
        assert running_clusters() == []
        assert not scratch.exists()


def test_a_server_that_cannot_start_says_why(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "clusters").mkdir(parents=True)
    (home / "clusters").chmod(0o755)
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(home))
    with pytest.raises(ClusterError, match="chmod 700"):
        start_cluster("cpu", workers=1)
    with pytest.raises(ClusterError, match="not the folder of a running cluster"):
        stop_cluster(ClusterFiles(folder=tmp_path))


def test_no_gpu_is_said_and_cuda_is_refused_with_the_lack():
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ClusterError, match="no NVIDIA device"):
        start_cluster("cuda")
