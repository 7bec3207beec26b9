"""A cluster outlives who started it, and ends when it should: nothing of it is left."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from intruder import listening
from ranks import CODE

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError, SettingsError
from rehearsal_kit.base.network_interfaces import interfaces, is_loopback
from rehearsal_kit.base.processes import family
from rehearsal_kit.cluster.cluster import connect, reach, start_cluster, stop_cluster
from rehearsal_kit.cluster.other_clusters import running_clusters
from rehearsal_kit.cluster.server import ClusterFiles, ServerRecord
from rehearsal_kit.cluster.server_process import STOP_TIMEOUT_S, wait_until_up

pytestmark = pytest.mark.cluster
DEADLINE_S = 60
KERNEL = """
import sys, time
from rehearsal_kit.cluster.cluster import start_cluster
if __name__ == "__main__":
    cluster = start_cluster("cpu", workers=1, idle_timeout_s=float(sys.argv[1]))
    print(cluster.files.folder, flush=True)
    time.sleep(600)
"""


def family_of(folder: str) -> list[psutil.Process]:
    found = [p for p in psutil.process_iter(["cmdline"]) if folder in (p.info["cmdline"] or [])]
    return [member for process in found for member in family(process.pid)]


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


def test_it_outlives_a_killed_kernel_and_can_be_reached_and_ended_by_another_process():
    kernel, folder, family = kernel_with_cluster(3600)
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    kernel.stdout.close()
    assert family
    assert all(process.is_running() for process in family)
    assert [str(files.folder) for files in running_clusters()] == [folder]
    with reach({"folder": folder}) as again:
        assert again.processes()[1:] == family
        assert again.reason == "CPU was asked for"
    assert not any(process.is_running() for process in family)
    assert not os.path.exists(folder)


def test_the_command_stop_ends_all():
    with start_cluster("cpu", workers=1) as cluster:
        family, folder = cluster.processes()[1:], cluster.files.folder
        began = time.monotonic()
        stop_by_command()
        # Our own child: it is dead, and not waited for, when the command looks at it.
        assert time.monotonic() - began < 2 * STOP_TIMEOUT_S
        assert not folder.exists()
    assert not any(process.is_running() for process in family)


def stop_by_command():
    done = subprocess.run(
        [sys.executable, "-m", "rehearsal_kit.cli", "stop"],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "stopped" in done.stdout


def test_an_unused_cluster_ends_by_itself():
    kernel, folder, family = kernel_with_cluster(1)
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    kernel.stdout.close()
    psutil.wait_procs(family, timeout=DEADLINE_S)
    assert not any(process.is_running() for process in family)
    assert not os.path.exists(folder)


def test_what_a_killed_server_leaves_is_cleared_away_without_a_traceback(caplog):
    logging.getLogger("distributed.client").addHandler(caplog.handler)  # Dask's do not go further up
    with start_cluster("cpu", workers=1) as cluster:
        family = cluster.processes()[1:]
        scratch = Path(ServerRecord.read(cluster.files).scratch)
        family[0].kill()
        psutil.wait_procs(family, timeout=DEADLINE_S)
        (files,) = running_clusters()
        assert scratch.is_dir()
        with pytest.raises(ClusterGoneError, match=r"is gone: its process has ended.*rk\.resume\("):
            reach(cluster.place)
        assert "ended already" in stop_cluster(files)
        assert running_clusters() == []
        assert not scratch.exists()
        deadline = time.monotonic() + DEADLINE_S
        while cluster.client.status != "connecting":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    logging.getLogger("distributed.client").removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_server_that_cannot_start_says_why(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "clusters").mkdir(parents=True)
    (home / "clusters").chmod(0o755)
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(home))
    with pytest.raises(ClusterError, match="chmod 700"):
        start_cluster("cpu", workers=1)
    with pytest.raises(ClusterError, match="not the folder of a running cluster"):
        stop_cluster(ClusterFiles(folder=tmp_path))


def test_a_cluster_whose_files_cannot_be_written_leaves_no_key(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("rehearsal_kit.cluster.server_process.write_private", no_room)
    with pytest.raises(ClusterError, match=r"No space left on device. Make room there"):
        start_cluster("cpu", workers=1)
    assert not [*(tmp_path / "home" / "clusters").iterdir()]


def test_who_cannot_connect_leaves_no_thread_and_no_file_open(tmp_path):
    """As a notebook does that looks again and again whether a cluster is there."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": place}))
    left = []
    for _ in range(2):
        with pytest.raises(ClusterGoneError, match="does not answer"):
            connect(tmp_path / "scheduler.json", timeout_s=0.5)
        left.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    assert left[0] == left[1]


def test_no_gpu_is_said_and_cuda_is_refused_with_the_lack():
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ClusterError, match="no NVIDIA device"):
        start_cluster("cuda")


def test_a_start_that_takes_long_is_told_and_has_an_end(tmp_path, capsys):
    files = ClusterFiles(folder=tmp_path)
    files.log.write_text("importing\n")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        with pytest.raises(
            ClusterError, match=r"the cluster did not start in 0\.5 s; its last words:\nimporting"
        ):
            wait_until_up(files, child, timeout_s=0.5, say_s=0.2)
        child.kill()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(
        "the cluster has been starting for 0 s, of 0.5 at most: its workers import torch"
    )
    assert said[0].endswith(f"what they say is in {files.log}")


def test_the_server_of_a_cluster_needs_no_torch():
    """It would take seconds and hundreds of MiB beside the workers, of which each has its own."""
    code = "import sys, rehearsal_kit.cluster.server; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


def test_a_cluster_of_no_workers_is_not_one_of_as_many_as_by_default():
    with pytest.raises(SettingsError, match="workers is 0; it must be a whole number from 1"):
        start_cluster("cpu", workers=0)


def listen_everywhere() -> int:
    """For client.run: what a careless library might do."""
    global careless  # noqa: PLW0603 - it must stay open
    careless = socket.create_server(("0.0.0.0", 0))
    return careless.getsockname()[1]


def wakes(dask_worker=None, dask_scheduler=None) -> dict[str, float]:
    """For client.run and client.run_on_scheduler: how often a process looks after itself, in seconds."""
    node = dask_worker or dask_scheduler
    return {name: node.periodic_callbacks[name].callback_time / 1000 for name in ("tick", "monitor")}


def test_it_is_bound_to_one_interface_and_ends_when_something_listens_on_all():
    wanted = next((each for each in interfaces() if not is_loopback(each.address)), interfaces()[0])
    with start_cluster("cpu", workers=1, interface=wanted.name, code=CODE) as cluster:
        assert cluster.address.scheduler.startswith(f"tls://{wanted.address}:")
        server, *others = cluster.processes()[1:]
        assert {host for host, _ in listening(others)} == {wanted.address}
        assert {host for host, _ in listening([server])} <= {wanted.address, "127.0.0.1"}
        for found in (*cluster.client.run(wakes).values(), cluster.client.run_on_scheduler(wakes)):
            assert found == {"tick": 1, "monitor": 10}, "a step trains meanwhile"
        (variables,) = cluster.client.run(lambda: dict(os.environ)).values()
        assert variables["GLOO_SOCKET_IFNAME"] == wanted.name
        assert variables["NCCL_SOCKET_IFNAME"] == f"={wanted.name}"  # without it, all whose names begin so
        assert variables["NCCL_RAS_ENABLE"] == "0"  # it would listen on a port of its own
        assert variables["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
        scratch = ServerRecord.read(cluster.files).scratch
        for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
            assert variables[name] == f"{scratch}/nccl-rank-"
        (port,) = cluster.client.run(listen_everywhere).values()
        psutil.wait_procs([server, *others], timeout=DEADLINE_S)
        with pytest.raises(
            ClusterGoneError,
            match=rf"listens beyond {wanted.name} .*: process \d+ on 0\.0\.0\.0 port {port}",
        ):
            reach(cluster.place)
        assert not cluster.files.key.exists()
    assert running_clusters() == []


def test_an_unknown_interface_is_refused_with_those_there_are():
    known = ", ".join(f"{each.name} ({each.address})" for each in interfaces())
    with pytest.raises(
        ClusterError,
        match=re.escape(f"'wlan7' is not there or has no IPv4 address; this machine has: {known}"),
    ):
        start_cluster("cpu", interface="wlan7")
