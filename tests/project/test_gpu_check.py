"""The script that checks a machine with a GPU begins and ends as it says; its stages are tested elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".github" / "gpu_check.sh"


def run(*words: str, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHON": sys.executable, "OUT": str(out), **variables}
    command = ["bash", str(SCRIPT), *words]
    return subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def test_it_makes_an_interpreter_of_the_working_tree_and_leaves_nothing_but_its_log(tmp_path):
    (tmp_path / "temporary").mkdir()
    done = run("--dry", "--only", "none", out=tmp_path / "out", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["check.log"]
    assert not [*(tmp_path / "temporary").iterdir()]


def test_an_unknown_option_and_a_stage_without_time_are_told(tmp_path):
    refused = run("--fast", out=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "unknown option --fast; it takes --dry, --only STAGES and --budget SECONDS" in refused.stderr
    unknown = run("--dry", "--only", "test", out=tmp_path)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "unknown stage test; there are environment, bench, figures, tests and demo" in unknown.stderr
    late = run("--dry", "--only", "environment", "--budget", "5", out=tmp_path)
    assert late.returncode == 1
    assert "environment: left out, of the budget of 5 s there are" in late.stdout
