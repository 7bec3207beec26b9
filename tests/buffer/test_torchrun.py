"""README's example of the buffer alone: run as it stands there, by torchrun, without Dask or a notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rehearsal_kit.buffer.snapshots import read_shards

README = Path(__file__).parents[2] / "README.md"


def example() -> str:
    found = re.search(r"```python torchrun example\n(.*?)```", README.read_text(), re.DOTALL)
    return found[1]


def launched(folder, code, ranks):
    """What the ranks say of each class, started by torchrun."""
    (folder / "loop.py").write_text(code)
    # What the ranks say goes into files: on one pipe they would speak at the same time.
    apart = ["--log-dir", "said", "--redirects", "3"]
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        *apart,
        "loop.py",
    ]
    ended(folder, launch, os.environ)
    said = [path.read_text() for path in sorted((folder / "said").rglob("stdout.log"))]
    return rights(said)


def ended(folder, words, environment):
    """What a Python with these words has said, after it has ended well."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rights(said):
    return [line.split()[1:] for text in said for line in text.splitlines() if line.startswith("right:")]


def test_readmes_loop_remembers_every_class_and_leaves_a_snapshot(tmp_path):
    assert launched(tmp_path, example(), 2) == [["True"] * 8] * 2
    state = read_shards(tmp_path / "buffer", rank=0, ranks=2)
    labels = state.layout.unpack(state.contents.rows[:])["label"].bincount().tolist()
    assert labels == [400 // 2 // 8] * 8


def test_without_representatives_the_same_loop_forgets_also_on_one_rank(tmp_path):
    code = example().replace("representatives=16", "representatives=0")
    # The variables that torchrun gives to a rank that is alone; it would import torch once more for that.
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    (right,) = rights([ended(tmp_path, ["-c", code], {**os.environ, **alone})])
    assert right[-2:] == ["True", "True"]
    assert right.count("False") >= 4


def test_the_loop_is_short():
    lines = [line for line in example().splitlines() if line.strip()]
    of_the_buffer = [line for line in lines if re.search(r"\brk\b|buffer|\bsettings\b|\blike\b", line)]
    assert len(of_the_buffer) <= 7
    assert len(lines) <= 18
