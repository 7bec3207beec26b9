"""The doctor says what there is and what lacks, and that with its exit status too."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rehearsal_kit.cli.doctor import machine, software
from rehearsal_kit.cli.doctor.finding import Finding, report, well
from rehearsal_kit.cluster.gpus import Gpu, Gpus

COMMAND = [sys.executable, "-m", "rehearsal_kit.cli", "doctor"]


def doctor(*arguments: str, before: tuple[str, ...] = (), home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, *COMMAND, *arguments],
        env={**os.environ, "REHEARSAL_KIT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_on_this_machine_nothing_essential_lacks_and_nothing_is_left(tmp_path):
    done = doctor("--json", home=tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["well"]
    found = {finding["what"]: finding for finding in told["findings"]}
    assert torch.__version__ in found["torch"]["found"]
    assert found["TLS"]["found"].startswith("works on loopback: TLSv1.")
    assert "lo 127.0.0.1" in found["ports"]["found"]
    assert "plaintext" in found["data plane"]["found"]
    assert ("hdf5plugin" in found["HDF5 filters"]["fix"]) == (importlib.util.find_spec("hdf5plugin") is None)
    assert list(tmp_path.iterdir()) == []


def test_keys_that_others_could_read_are_an_essential_lack(tmp_path):
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters").chmod(0o755)
    done = doctor(home=tmp_path)
    assert done.returncode == 1
    assert "LACK  keys" in done.stdout
    assert "essential, and lacking: keys" in done.stdout
    assert "chmod 700" in " ".join(done.stdout.split())


def test_without_a_loopback_it_says_so_with_the_fix(tmp_path):
    alone = ("unshare", "--user", "--map-root-user", "--net")
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system does not let us take a program off the network")
    done = doctor("--json", before=alone, home=tmp_path)
    assert done.returncode == 1, done.stderr
    found = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "none can be bound on loopback" in found["ports"]["found"]
    assert "bring the loopback interface up" in found["ports"]["fix"]
    assert found["TLS"]["fix"]
    assert not found["Python"]["fix"]


@pytest.mark.parametrize(
    ("fix", "essential", "expected"), [("", True, True), ("x", False, True), ("x", True, False)]
)
def test_only_an_essential_lack_counts(fix, essential, expected):
    assert well([Finding(what="a", found="b", fix=fix, essential=essential)]) is expected


def test_the_report_is_a_table_that_fits_the_terminal():
    findings = [
        Finding(what="keys", found="private"),
        Finding(what="HDF5 filters", found="none", fix="word " * 30),
        Finding(what="torch", found="gone", fix="install it", essential=True),
    ]
    lines = report(findings, width=60).splitlines()
    assert lines[0] == "ok    keys          private"
    assert lines[1].startswith("note  HDF5 filters  none — word")
    assert "LACK  torch         gone — install it" in lines
    assert lines[-1] == "essential, and lacking: torch"
    assert max(map(len, lines)) <= 60


def test_a_batch_job_is_recognised_and_a_login_node_suspected(monkeypatch):
    for name in machine.BATCH_JOBS:
        monkeypatch.delenv(name, raising=False)
    assert "login node" in machine.place().found
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert machine.place().found == "SLURM_JOB_ID=42"


def test_the_room_that_a_worker_would_have():
    found = machine.memory_and_cores().found
    assert f"{len(os.sched_getaffinity(0))} core" in found
    assert "GiB free" in machine.temporary_folder().found


def test_what_nccl_needs_is_said_where_torch_has_it(tmp_path):
    small = machine.shared_memory(nccl=True, folder=Path("/proc"))  # a file system without any room
    assert "--shm-size=1g" in small.fix
    assert not machine.shared_memory(nccl=False, folder=Path("/proc")).fix
    assert "--shm-size=1g" in machine.shared_memory(nccl=True, folder=tmp_path / "none").fix
    limited = machine.locked_memory(nccl=True, limit=2**26)
    assert limited.found == "0.06 GiB"
    assert "ulimit -l unlimited" in limited.fix
    assert machine.locked_memory(nccl=True, limit=-1) == Finding(what="locked memory", found="unlimited")
    assert not machine.locked_memory(nccl=False).fix
    assert bool(torch.version.cuda) or "gloo" in software.nccl().found


def test_gpus_are_counted_or_their_lack_explained():
    finding = software.gpus()
    assert not finding.essential
    if os.path.exists("/dev/nvidia0"):
        assert finding.fix or "dask-cuda" in finding.found
    else:
        assert "no NVIDIA device" in finding.found
        assert not finding.fix  # nothing to install would help


def test_gpus_are_told_with_who_uses_them_and_how_workers_are_bound(monkeypatch):
    used = Gpu(visible="0", name="NVIDIA H100", users="process 7 (python, 2048 MiB)")
    alone = Gpu(visible="1", name="NVIDIA H100", exclusive=True)
    plain = "dask-cuda is not installed: pip install 'rehearsal-kit[cuda13]'"
    monkeypatch.setattr(software, "find_gpus", lambda: Gpus(usable=(used, alone), plain=plain))
    finding = software.gpus()
    assert finding.found == (
        "2: NVIDIA H100 in use by process 7 (python, 2048 MiB), NVIDIA H100 in compute mode EXCLUSIVE; "
        f"plain workers, because {plain}"
    )
    assert not finding.fix  # it works as it is
    monkeypatch.setattr(software, "find_gpus", lambda: Gpus(lack="a CPU build", cure="install another"))
    assert (software.gpus().found, software.gpus().fix) == ("none to use: a CPU build", "install another")
