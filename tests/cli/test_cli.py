"""The command line, as a person calls it."""

from __future__ import annotations

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
from runkit import written

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cli.main import main
from rehearsal_kit.cluster.server import ClusterFiles
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.run_folder import RunFolder

pytestmark = pytest.mark.cluster
COMMAND = [sys.executable, "-m", "rehearsal_kit.cli"]


@pytest.fixture(autouse=True)
def own_signals():
    """The command line sets a handler for the whole process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def demo(folder: Path, capsys, *arguments, expected: int = 0) -> tuple[dict, str, str]:
    """Run a demo that must come to its end, in this process; its data and what it printed, errors apart."""
    files = ["--run", folder / "run", "--json", folder / "table.json"]
    status = main(["demo", *map(str, [*files, *arguments])])
    said = capsys.readouterr()
    assert status == expected, said.out + said.err
    return json.loads((folder / "table.json").read_text()), said.out, said.err


def started_demo(folder: Path) -> subprocess.Popen[str]:
    """A demo as started from a terminal, with one worker: to end it is all that is asked of it."""
    return subprocess.Popen(
        [*COMMAND, "demo", "--workers", "1", "--run", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finals(data: dict) -> dict[str, float]:
    (seed,) = data["seeds"].values()
    return {name: outcome["final_error"] for name, outcome in seed.items()}


def nothing_runs() -> bool:
    """No process of any cluster whose keys lie in the home folder of these tests."""
    home = os.environ["REHEARSAL_KIT_HOME"]
    return not [p for p in psutil.process_iter(["cmdline"]) if home in " ".join(p.info["cmdline"] or [])]


def test_on_the_simulated_beamline_rehearsal_forgets_less_than_naive_training(tmp_path, capfd):
    data, said, told = demo(tmp_path, capfd, "--tasks", 2, "--epochs", 2)
    errors = finals(data)
    assert errors["ER"] < errors["Incremental"]
    er, incremental = data["seeds"]["0"]["ER"], data["seeds"]["0"]["Incremental"]
    assert er["forgetting"] < incremental["forgetting"]
    assert abs(er["remote_share"] - 0.5) < 0.05
    assert [len([e for e in row if e is not None]) for row in er["test_error"]] == [1, 2]
    for word in ("run folder", "devices", "to stop", "gap closed", "one seed", "SIMULATED", "x Incremental"):
        assert word in said
    assert data["memory_bytes"] < 2 * 2**30
    progress = [line for line in told.splitlines() if "step" in line]
    assert 3 <= len(progress) < 40, "a line every ten seconds where there is no terminal"
    assert "\r" not in told
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
            "checkpoints",
            "cluster.json",
            "generations.jsonl",
            "lease.lock",
            "wishes.jsonl",
            "effects.jsonl",
            "inputs.json",
            "timeline.jsonl",
            "previews",
            "initial.safetensors",
            "weights.safetensors",
        }


@pytest.mark.endurance
@pytest.mark.timeout(400)
def test_on_three_real_samples_rehearsal_forgets_less_than_naive_training(tmp_path, capsys):
    scans = [
        real_data("cnm_hxn_scan247/epie_reconstruction.npz"),
        real_data("als_gold_balls_recon/gold_balls.mat"),
        real_data("lcls_xpp_run1084_recon/Run1084_recon3_postPC.npz"),
    ]
    data, said, _ = demo(tmp_path, capsys, "--epochs", 1, "--scans", *scans)
    errors = finals(data)
    assert errors["ER"] < errors["Incremental"]
    assert data["seeds"]["0"]["Incremental"]["forgetting"] > 0
    assert "SIMULATED" in said


def test_a_bad_scan_among_good_ones_is_named_and_the_rest_is_learned(tmp_path, capsys):
    beamline = Beamline(folder=tmp_path, scans=2)
    good = [beamline.write(0), beamline.write(1)]
    torn, text = tmp_path / "torn.cxi", tmp_path / "notes.npz"
    torn.write_bytes(good[0].read_bytes()[:20_000])
    text.write_text("nothing here")
    scans = [good[0], torn, text, tmp_path / "gone.cxi", good[1]]
    # A script must not take it for the whole stream.
    with pytest.warns(UserWarning, match="3 tasks were set aside: torn"):
        data, said, _ = demo(tmp_path, capsys, "--workers", 1, "--epochs", 1, "--scans", *scans, expected=3)
    for outcome in data["seeds"]["0"].values():
        assert outcome["tasks"] == ["scan_0000", "scan_0001"]
        assert [name for name, _ in outcome["set_aside"]] == ["torn", "notes", "gone"]
        assert all(str(tmp_path) in reason for _, reason in outcome["set_aside"])
    assert "set aside torn" in said
    # What it leaves can be replayed: the scans that were set aside are set aside again.
    (folder,) = tmp_path.rglob("er")
    # As if ranks had been started on another machine once.
    elsewhere = {"device": "cuda", "GPU": "of last week"}
    joined = Joined(rank=0, ranks=1, device="cuda:0", process=1, time=0.0, versions=elsewhere)
    written(RunFolder(folder), [joined])
    settings = json.loads((folder / "settings.json").read_text())
    settings["versions"]["code of rehearsal-kit"] = "of last week"
    (folder / "settings.json").write_text(json.dumps(settings))
    assert main(["replay", str(folder), "--check"]) == 1
    assert "code of rehearsal-kit of last week then" in capsys.readouterr().err
    assert main(["replay", str(folder), "--check", "--any-versions"]) == 0
    said = capsys.readouterr().out
    assert "  with other versions: code of rehearsal-kit of last week then" in said
    assert "  on another device: device cuda then, cpu now; GPU of last week then, none now" in said
    assert "DIFFERENT" not in said
    assert "4 of 4 bit-identical" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scans", "nowhere/*.cxi"], "no file matches"),
        (["--seed", "1", "1"], "must be distinct"),
        (["--workers", "0"], "whole number from 1"),
        (["--epochs", "0"], "epochs is 0; it must be a whole number from 1"),
        (["--run", "."], "never written over"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    assert main(["demo", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert nothing_runs()


def test_a_demo_of_nothing_but_a_missing_scan_ends_in_one_line_and_ends_its_workers(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--workers", "1", "--scans", "gone.cxi"]) == 1
    told = capfd.readouterr().err
    assert "gone.cxi" in told.splitlines()[-1]
    assert "Traceback" not in told
    assert nothing_runs()


def test_a_signal_to_end_ends_everything(tmp_path, monkeypatch):
    """Ctrl-C, which goes the same way, is pressed in test_compare.py and in test_bench.py."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = started_demo(tmp_path)
    with process:
        line = next(line for line in process.stdout if line.startswith("to stop"))
        assert "Ctrl-C" in line
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    assert nothing_runs()
    assert not list((tmp_path / "run").rglob("rendezvous"))
    assert not list(temporary.iterdir())


def test_a_cluster_that_cannot_be_stopped_keeps_no_other_from_it(monkeypatch, capsys, tmp_path):
    def stop(files):
        if files.folder.name == "a":
            raise ClusterError("its machine does not answer.")
        return f"{files.folder.name}: stopped."

    monkeypatch.setattr("rehearsal_kit.cli.commands.stop.stop_cluster", stop)
    monkeypatch.setattr(
        "rehearsal_kit.cli.commands.stop.running_clusters",
        lambda: [ClusterFiles(folder=tmp_path / name) for name in "ab"],
    )
    assert main(["stop"]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("b: stopped.\n", "a: its machine does not answer.\n")


def test_stop_in_another_process_ends_a_demo(tmp_path):
    process = started_demo(tmp_path)
    with process:
        next(line for line in process.stdout if line.startswith("to stop"))
        assert main(["stop"]) == 0
        _, error = process.communicate(timeout=20)  # it does not wait for answers of what has ended
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
