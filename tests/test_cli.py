"""The command line, as a person calls it."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import labkit
import psutil
import pytest
from real_data import real_data

from rehearsal_kit.synthetic import Beamline

pytestmark = pytest.mark.cluster
COMMAND = [sys.executable, "-m", "rehearsal_kit.cli"]


def run(*arguments, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=280, check=False
    )


def demo(folder: Path, *arguments) -> tuple[dict, str]:
    """Run a demo that must succeed; its data and what it printed."""
    done = run("demo", "--run", folder / "run", "--json", folder / "table.json", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "table.json").read_text()), done.stdout


def started_demo(folder: Path) -> subprocess.Popen[str]:
    """A demo as started from a terminal: a shell's background jobs, CI's perhaps, ignore Ctrl-C."""
    return subprocess.Popen(
        [*COMMAND, "demo", "--run", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def finals(data: dict) -> dict[str, float]:
    (seed,) = data["seeds"].values()
    return {name: outcome["final_error"] for name, outcome in seed.items()}


def nothing_runs() -> bool:
    """No process of any cluster whose keys lie in the home folder of these tests."""
    home = os.environ["REHEARSAL_KIT_HOME"]
    return not [p for p in psutil.process_iter(["cmdline"]) if home in " ".join(p.info["cmdline"] or [])]


def test_on_the_simulated_beamline_rehearsal_forgets_less_than_naive_training(tmp_path):
    data, said = demo(tmp_path, "--epochs", 5, "--seed", 0)
    errors = finals(data)
    assert errors["ER"] < errors["Incremental"]
    er, incremental = data["seeds"]["0"]["ER"], data["seeds"]["0"]["Incremental"]
    assert er["forgetting"] < incremental["forgetting"]
    assert abs(er["remote_share"] - 0.5) < 0.05
    assert len(er["test_error"]) == 4
    assert [len([e for e in row if e is not None]) for row in er["test_error"]] == [1, 2, 3, 4]
    for word in ("run folder", "devices", "to stop", "gap closed", "one seed", "SIMULATED", "x Incremental"):
        assert word in said
    assert data["memory_bytes"] < 2 * 2**30
    the_run_folder_is_private_and_the_report_needs_no_network(tmp_path / "run")
    assert nothing_runs()


def the_run_folder_is_private_and_the_report_needs_no_network(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    report = (folder / "report.html").read_text()
    assert "default-src 'none'" in report
    assert not re.search(r"<(?:script|img|iframe)[^>]{0,200}src=.?https?:", report)
    for name in ("er", "incremental", "fromscratch"):
        kept = {path.name for path in (folder / "seed-0" / name).iterdir()}
        assert kept == {
            "settings.json",
            "wishes.jsonl",
            "effects.jsonl",
            "inputs.json",
            "timeline.jsonl",
            "previews.h5",
            "initial.safetensors",
            "weights.safetensors",
        }


@pytest.mark.timeout(400)
def test_on_three_real_samples_rehearsal_forgets_less_than_naive_training(tmp_path):
    scans = [
        real_data("cnm_hxn_scan247/epie_reconstruction.npz"),
        real_data("als_gold_balls_recon/gold_balls.mat"),
        real_data("lcls_xpp_run1084_recon/Run1084_recon3_postPC.npz"),
    ]
    data, said = demo(tmp_path, "--epochs", 3, "--scans", *scans)
    errors = finals(data)
    assert errors["ER"] < errors["Incremental"]
    assert data["seeds"]["0"]["Incremental"]["forgetting"] > 0
    assert "SIMULATED" in said


def test_measured_frames_by_region_of_the_sample(tmp_path):
    data, said = demo(tmp_path, "--epochs", 1, "--scans", real_data("cnm_hxn_scan247/scan247.npz"))
    outcome = data["seeds"]["0"]["ER"]
    assert len(outcome["tasks"]) == len(outcome["test_error"]) == 4
    assert "SIMULATED" not in said


def test_a_bad_scan_among_good_ones_is_named_and_the_rest_is_learned(tmp_path):
    beamline = Beamline(folder=tmp_path, scans=2)
    good = [beamline.write(0), beamline.write(1)]
    torn, text = tmp_path / "torn.cxi", tmp_path / "notes.npz"
    torn.write_bytes(good[0].read_bytes()[:20_000])
    text.write_text("nothing here")
    data, said = demo(tmp_path, "--epochs", 1, "--scans", good[0], torn, text, tmp_path / "gone.cxi", good[1])
    for outcome in data["seeds"]["0"].values():
        assert outcome["tasks"] == ["scan_0000", "scan_0001"]
        assert [name for name, _ in outcome["set_aside"]] == ["torn", "notes", "gone"]
        assert all(str(tmp_path) in reason for _, reason in outcome["set_aside"])
    assert "set aside torn" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scans", "nowhere/*.cxi"], "no file matches"),
        (["--scans", "gone.cxi"], "gone.cxi"),
        (["--seed", "1", "1"], "must be distinct"),
        (["--workers", "0"], "whole number from 1"),
        (["--run", "."], "never written over"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, arguments, said):
    (tmp_path / "mine.txt").write_text("")
    done = run("demo", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing_runs()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_everything(tmp_path, monkeypatch, number):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = started_demo(tmp_path)
    with process:
        line = next(line for line in process.stdout if line.startswith("to stop"))
        assert "Ctrl-C" in line
        process.send_signal(number)
        _, error = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    assert nothing_runs()
    assert not list((tmp_path / "run").rglob("rendezvous"))
    assert not list(temporary.iterdir())


def test_stop_in_another_terminal_ends_a_demo(tmp_path):
    process = started_demo(tmp_path)
    with process:
        next(line for line in process.stdout if line.startswith("to stop"))
        done = run("stop", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        _, error = process.communicate(timeout=90)
    assert process.returncode == 1
    assert error.splitlines()[-1].startswith("rehearsal-kit: ")
    assert "Traceback" not in error
    assert nothing_runs()


def test_lab_copies_the_notebooks_never_over_yours_and_serves_them_on_loopback_with_a_token(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "01_quickstart.ipynb").write_text("mine")
    process = subprocess.Popen(
        [
            *COMMAND,
            "lab",
            str(folder),
            "--no-browser",
            "--jupyter=--allow-root",
            f"--jupyter=--port={labkit.free_port()}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=labkit.environment(tmp_path / "home"),
    )
    try:
        lines = []
        address = None
        while address is None:
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
            address = re.search(
                r"http://127\.0\.0\.1:\d+/lab/tree/01_quickstart\.ipynb\?token=(\w+)", lines[-1]
            )
        assert any("kept" in line for line in lines)
        assert (folder / "01_quickstart.ipynb").read_text() == "mine"
        base = address[0].split("/lab")[0]
        assert b"01_quickstart.ipynb" in labkit.answer(process, f"{base}/api/contents?token={address[1]}")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{base}/api/contents", timeout=10)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
