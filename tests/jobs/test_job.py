"""What a person may ask a batch system for, what its script says, and what is told where that cannot be."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed.core import Status
from ranks import Tiny

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError, SettingsError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import interface_named, interface_towards
from rehearsal_kit.batch.job import Job, clock, seconds_of
from rehearsal_kit.batch.site import SITES, known_sites, read_site
from rehearsal_kit.batch.systems import SYSTEMS
from rehearsal_kit.cli.main import main
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.code_folders import CodeFolders
from rehearsal_kit.cluster.job_folder import JobFiles, job_named, jobs_folder, known_jobs
from rehearsal_kit.cluster.server import ClusterAddress, ServerRecord
from rehearsal_kit.cluster.server_process import ServerProcess
from rehearsal_kit.jobs import launch
from rehearsal_kit.jobs.launch import (
    connect_job,
    forget_old_jobs,
    prepare,
    submit,
    wait_until_up,
)
from rehearsal_kit.jobs.next_job import MISSED, follow
from rehearsal_kit.jobs.node_workers import node_devices, replace_closed
from rehearsal_kit.jobs.script import job_script
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.session.session import Session


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("5:30", 330), ("1:30:00", 5400), ("2-12", 216_000), ("1-00:30", 88_200), ("0:45", 45)],
)
def test_times_as_batch_systems_write_them(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "0", "an hour", "1:2:3:4", "-5", "1.5", "00:00:00"])
def test_what_is_no_time_is_refused(time):
    with pytest.raises(SettingsError, match=r"it must be minutes, as 90, or"):
        seconds_of(time)


def test_time_is_asked_for_in_whole_minutes():
    assert Job(time="0:02:10").time_s == 180
    assert clock(90_061) == "25:01:01"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": 0}, "nodes is 0"),
        ({"workers_per_node": 0}, "workers_per_node is 0"),
        ({"site": "summit"}, "known are frontier, pbs, perlmutter, polaris, slurm, sophia"),
        ({"site": "/nowhere/mine.toml"}, "cannot be read"),
        ({"account": "a b"}, "account is 'a b'; it must be one word"),
        ({"queue": "x\n#SBATCH --uid=0"}, "it must be one word"),
        ({"options": ("rm -rf",)}, "it must begin with -"),
        ({"options": ("--x\nrm",)}, "is none of a batch system"),
        ({"name": ""}, "name is empty"),
        ({"time": "2"}, "time is '2', 120 s, of which the last 120 s"),
        ({"margin_s": 0.0}, "margin_s is 0"),
    ],
)
def test_what_no_job_can_be_is_refused(settings, said):
    with pytest.raises(SettingsError, match=said):
        Job(**settings)


def test_every_site_says_who_has_tried_it_and_makes_a_script(tmp_path):
    for name in known_sites():
        site = read_site(name)
        assert site.note.endswith("not tried on the machine") == (name not in ("slurm", "pbs"))
        files = JobFiles(folder=tmp_path / "jobs")
        script = job_script(Job(site=name, nodes=3, account="me", queue="debug"), files)
        assert "{" not in script
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        nodes = ("--nodes=3", "select=3")
        assert any(words in script for words in nodes)
        assert [line for line in script.splitlines() if line and not line.startswith("#")][-1].startswith(
            "exec "
        )


def test_a_site_of_ones_own(tmp_path):
    mine = tmp_path / "mine.toml"
    text = (SITES / "slurm.toml").read_text()
    mine.write_text(
        text + 'directives = ["--constraint=fast"]\nsetup = ["module load python"]\ngpus_per_node = 2\n'
    )
    job = Job(site=mine, nodes=2, options=("--mem=64G",))
    assert (job.kind, job.workers) == ("cuda", 2)
    assert (replace(job, gpus=0).kind, replace(job, gpus=0).workers) == ("cpu", 1)
    script = job_script(job, JobFiles(folder=tmp_path))
    for line in (
        "#SBATCH --constraint=fast",
        "module load python",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --mem=64G",
    ):
        assert f"\n{line}\n" in script
    for wrong, said in (
        ("system = ", "is no TOML"),
        (text.replace("slurm", "lsf", 2).replace('"lsf"', '"lsf"'), "must be one of 'slurm', 'pbs'"),
        (text + "gpu = 4", "is not right"),
        (text.replace("{nodes}", "{hosts}", 1), r"\{hosts\} is not known"),
        (text + 'note = "one\\ntwo"', "is no text of one line"),
        (text.replace('"srun"', "7", 1), "is not right"),
    ):
        mine.write_text(wrong)
        with pytest.raises(SettingsError, match=said):
            Job(site=mine)


def test_gpus_by_number_for_those_that_nvml_does_not_know(pbs):
    files = prepare(Job(site="frontier", nodes=2))
    devices = node_devices(files.read_order())
    assert devices.gpus == tuple("01234567")
    assert devices.plain


@pytest.fixture
def chained(pbs, monkeypatch):
    """The folder of a job that is to be followed by others, which wait in the queue."""
    files = prepare(Job(site="pbs", goes_on=True, queue="busy"))
    monkeypatch.setenv("PBS_JOBID", "99.pbs")
    files.write_job(replace(files.read_job(), numbers=("99.pbs",)))
    return files


def test_a_chain_of_jobs_that_come_to_nothing_ends_and_says_so(chained, monkeypatch):
    said = [follow(chained, ["/runs/today"], worked=True)]
    while not said[-1][1] and len(said) < 9:
        monkeypatch.setenv("PBS_JOBID", said[-1][0])
        SYSTEMS["pbs"].cancel(said[-1][0])  # it has ended before any other does
        said.append(follow(chained, [], worked=True))
    assert [number for number, _ in said] == [*chained.read_job().numbers[1:], ""]
    assert len(said) == 2 + MISSED
    assert said[-1][1].startswith("several jobs in a row ended before")
    assert "no job follows: several jobs in a row" in chained.failure.read_text()


def test_no_job_follows_one_in_which_nobody_has_done_anything(chained):
    said = follow(chained, ["/runs/today"], worked=False)
    assert said == ("", "nobody is connected, and no step was taken in it")
    assert not chained.failure.exists()  # the run says so itself
    assert follow(chained, [], worked=False) == ("", "")
    assert chained.read_job().numbers == ("99.pbs",)


def test_a_worker_that_cannot_be_started_again_takes_no_other_with_it():
    well, gone = [SimpleNamespace(name=name, status=Status.running) for name in ("n-0", "n-1")]
    gone.status = Status.closed
    nannies, answers = [well, gone], [RuntimeError("Nanny failed to start."), OSError("no route"), "new"]

    async def make(number):
        assert number == 1
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(name=answer, status=Status.running)

    def look(going=True):
        return asyncio.run(replace_closed(nannies, make, going=lambda: going))

    assert not look(going=False)
    assert [look(), look(), look(), look()] == [True, True, False, False]
    assert [nanny.name for nanny in nannies] == ["n-0", "new"]


def test_a_folder_of_a_job_is_private_and_its_script_holds_no_secret(pbs, capsys):
    assert main(["launch", "--site", "polaris", "--print", "--account", "X", "--queue", "debug"]) == 0
    said = capsys.readouterr().out
    (files,) = known_jobs()
    assert files.folder.stat().st_mode & 0o777 == 0o700
    assert all(not path.stat().st_mode & 0o077 for path in files.folder.iterdir())
    assert files.key.read_text().splitlines()[1] not in said
    for line in ("#PBS -l filesystems=home:eagle", "#PBS -A X", "#PBS -q debug", f"qsub {files.script}"):
        assert line in said
    assert f"rk.connect_job({files.folder.name!r})" in said
    assert tomllib.loads((SITES / "polaris.toml").read_text())["note"] in said
    assert main(["jobs"]) == 0
    assert f"written (submit it by hand: {files.script})" in capsys.readouterr().out
    assert main(["launch", "--cancel", files.folder.name]) == 0
    assert not known_jobs()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch"], "which batch system? Give --slurm, --pbs, or --site"),
        (["launch", "--cancel", "7"], "no job '7' of yours is known here; there are: none"),
        (["launch", "--pbs", "--queue", "nowhere"], "Unknown queue; the queues there are: `qstat -Q`"),
        (["launch", "--pbs", "--nodes", "0"], "nodes is 0"),
    ],
)
def test_what_cannot_be_launched_is_told_in_one_line_and_leaves_nothing(pbs, capsys, words, said):
    assert main(words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not known_jobs()


def test_a_log_that_pbs_could_not_write_to_is_refused(pbs, monkeypatch):
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(pbs / "my home"))
    with pytest.raises(ClusterError, match=r"my home/.*no path with a space.*REHEARSAL_KIT_HOME"):
        submit(Job(site="pbs"))
    assert not known_jobs()
    assert not [*(pbs / "my home" / "jobs").iterdir()]


@pytest.mark.parametrize("goes_on", [False, True])
def test_who_has_a_network_of_ones_own_hears_that_the_next_job_cannot_go_on_by_itself(pbs, goes_on):
    files = prepare(Job(site="pbs", goes_on=goes_on))
    address = ClusterAddress(scheduler="tls://127.0.0.1:1", kind="cpu", workers=1)
    record = ServerRecord(address=address, reason="", host="h", process=1, scratch="", code=CodeFolders())
    write_private(files.address, json.dumps(asdict(record)))
    cluster = Cluster(None, address=address, reason="", place={}, server=ServerProcess(files))
    # There is no scheduler at that address.
    with pytest.warns(UserWarning, match="not one of ours") as warned, pytest.raises(AttributeError):
        Session(cluster, run=pbs / "run", strategy=ER(), network=Tiny(seed=1))
    assert ("cannot go on with the run by itself" in str(warned[0].message)) == goes_on


@pytest.mark.parametrize(("system", "command"), [("--slurm", "sbatch"), ("--pbs", "qsub")])
def test_where_there_is_no_batch_system_it_is_said(tmp_path, monkeypatch, capsys, system, command):
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", system]) == 1
    assert f"there is no `{command}` here, so this is no login node" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "helps"),
    [
        ("Invalid account or account/partition combination specified", "give --account"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "give --time"),
        ("Unable to contact slurm controller (connect failure)", "try again later"),
        ("Something nobody has heard of", "was refused: sbatch: error: Something nobody has heard of."),
    ],
)
def test_what_a_site_refuses_is_told_with_what_helps(tmp_path, monkeypatch, said, helps):
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho 'sbatch: error: {said}' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o700)
    with pytest.raises(ClusterError, match=re.escape(helps)):
        submit(Job(site="slurm"))
    assert not known_jobs()


def test_a_job_in_the_queue_is_waited_for_with_its_state(pbs, capsys):
    files = submit(Job(site="pbs", queue="busy"))
    number = files.read_job().number
    with pytest.raises(
        ClusterGoneError, match=rf"not there after 0\.1 s: waiting .*connect_job\('{number}'\)"
    ):
        connect_job(number, timeout_s=0.1)
    assert (
        f"job {number}: waiting (Not Running: Insufficient amount of resource: ncpus)"
        in capsys.readouterr().err
    )
    assert "cancelled" in files.cancel()
    with pytest.raises(ClusterError, match=r"there is no cluster of this job: ended|was cancelled"):
        connect_job(number, timeout_s=5)
    assert "nothing to cancel" in files.cancel()


def test_a_folder_that_the_nodes_do_not_share_is_told(pbs):
    files = submit(Job(site="pbs", queue="busy"))
    Path(f"{os.environ['PBS_STAND_IN']}/{files.read_job().number}.running").write_text("0")
    with pytest.raises(ClusterError, match=r"has been running for .* the nodes do not share this folder"):
        wait_until_up(files, timeout_s=5, ask_s=0.01, shared_s=0.05)


def test_old_folders_are_forgotten(pbs, monkeypatch):
    monkeypatch.setattr(launch, "KEPT", 2)
    for number in range(4):
        files = prepare(Job(site="pbs"))
        files.write_job(replace(files.read_job(), numbers=(str(number),), made=float(number)))
        if number < 3:
            files.key.unlink()  # it has ended
    forget_old_jobs()
    assert [files.read_job().number for files in known_jobs()] == ["1", "2", "3"]
    assert job_named("").read_job().number == "3"
    assert job_named("2").folder == known_jobs()[1].folder


def test_what_a_killed_doctor_has_left_is_removed(pbs):
    left, new = [jobs_folder() / f"examination-{name}" for name in ("left", "new")]
    for folder in (left, new):
        folder.mkdir(mode=0o700)
        (folder / "nonce").touch()
    os.utime(left, (0, 0))
    forget_old_jobs()
    assert (left.exists(), new.exists()) == (False, True)


def test_the_interface_that_leads_to_the_login_node():
    assert interface_towards(["127.0.0.1"]) == interface_named(None)
    with pytest.raises(
        ClusterError, match=r"knows no way to 999\.1\.1\.1; its interfaces are: .*127\.0\.0\.1"
    ):
        interface_towards(["999.1.1.1"])
