"""What README and CONTRIBUTING tell people to type is executed as it stands there, every block and every row.

What takes minutes is executed by another test, or by `.ci/run`: then the words are compared with those.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import itertools
import re
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.protocol.pickle import dumps, loads
from ranks import alone, small_job
from texts import CONTRIBUTING, README, ROOT, block, blocks

from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.cli.main import COMMANDS, _parser, main
from rehearsal_kit.compare.streams import STREAMS
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.strategies.registry import STRATEGIES
from rehearsal_kit.record.commands import FinishStream
from rehearsal_kit.record.records import Steps, TaskArrived, TaskEnded

EXECUTED = {
    "demo command": "tests/project/test_readme.py",
    "test command": ".ci/run",
    "lab command": "tests/project/test_readme.py",
    "notebook example": "tests/project/test_readme.py",
    "strategy example": "tests/project/test_readme.py",
    "torchrun example": "tests/buffer/test_torchrun.py",
    "layout example": "tests/project/test_recipes.py",
    "term example": "tests/project/test_recipes.py",
    "network example": "tests/project/test_recipes.py",
}
"""Who executes each block, by the name after its language."""
PYTEST = ".venv-test/bin/python -m pytest"


def commands(text: str) -> list[str]:
    """Whatever stands in a table below the word "command"."""
    found, column = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)] if line.startswith("|") else []
        if "command" in cells:
            column = cells.index("command")
        elif not cells:
            column = None
        elif column is not None and set(cells[column]) != {"-"}:
            found.append(cells[column].strip("`").replace(r"\|", "|"))
    return found


def test_every_block_is_executed():
    found = [each for text in (README, CONTRIBUTING) for each in blocks(text)]
    names = [name for language, name, _ in found if language != "bibtex"]
    assert sorted(names) == sorted(EXECUTED)
    for name, file in EXECUTED.items():
        said = (ROOT / file).read_text()
        assert re.search(rf"```\w+ {name}\b", said) or f'block("{name}")' in said, (name, file)


# Set-up and checks --------------------------------------------------------------------------------------


def test_the_command_of_the_tests_is_the_one_that_ci_runs():
    script = (ROOT / ".ci" / "run").read_text()
    (line,) = re.findall("^command=.*$", script, re.MULTILINE)
    found = subprocess.check_output(["bash", "-c", f'{line}; echo "$command"'], cwd=ROOT, text=True)
    assert found.strip() == block("test command")
    run = [line for line in script.splitlines() if line.startswith("bash ")]
    assert run == [
        'bash -euo pipefail -c "${command% && *}"',
        'bash -euo pipefail -c "${command##* && }"',
    ], "all of it, in two parts"


def test_the_set_up_of_the_demo_is_that_of_the_tests_with_the_package_as_it_is():
    """What it installs is looked at in test_notebooks.py; a smaller demo is run in test_cli.py."""
    *set_up, demo = block("demo command").split(" && ")
    of_tests = block("test command").replace(".venv-test", ".venv").split(" && ")[:3]
    assert set_up == [*of_tests[:2], of_tests[2].replace("-e '.[test]'", ".")]
    require_parsed(demo)


@pytest.mark.parametrize("command", [c for c in commands(CONTRIBUTING) if not c.startswith(PYTEST)])
def test_a_command_that_contributing_names_is_one_that_ci_runs(command, tmp_path):
    set_up, tests = block("test command").rsplit(" && ", 1)
    assert tests in commands(CONTRIBUTING)
    if command != ".ci/check":
        assert command == set_up
        return
    (tmp_path / "bin").mkdir()
    for tool in ("ruff", "mypy", "lint-imports"):
        (tmp_path / "bin" / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> {tmp_path}/calls\n')
        (tmp_path / "bin" / tool).chmod(0o700)
    (tmp_path / ".ci").mkdir()
    (tmp_path / command).write_bytes((ROOT / command).read_bytes())
    (tmp_path / command).chmod((ROOT / command).stat().st_mode)
    subprocess.run([tmp_path / command], check=True, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    # All of which test_house.py runs in earnest.
    called = (tmp_path / "calls").read_text().splitlines()
    assert called == ["ruff check .", "ruff format --check .", "mypy", "lint-imports"]


class Count:
    """A plugin that says how many tests were collected."""

    def __init__(self) -> None:
        self.tests = 0

    def pytest_collection_finish(self, session):
        self.tests = len(session.items)


def test_the_tests_that_contributing_names_are_there(monkeypatch):
    named = [command for command in commands(CONTRIBUTING) if command.startswith(PYTEST)]
    monkeypatch.chdir(ROOT)
    counts = {}
    for command in named:
        count = Count()
        # Here and not in a process of its own, which would import all tests once more.
        words = shlex.split(command.removeprefix(PYTEST))
        assert pytest.main([*words, "--collect-only", "-qq", "-p", "no:cacheprovider"], plugins=[count]) == 0
        counts[command] = count.tests
    assert all(counts.values())
    fast, every = counts[f"{PYTEST} -m fast -n 2"], counts[f"{PYTEST} -n 3 --dist loadfile"]
    assert fast / every == pytest.approx(2 / 3, abs=0.07), "what the table says of it"


# The command line ---------------------------------------------------------------------------------------


def require_parsed(command: str) -> None:
    """As a shell and the command line's own parser take it."""
    program, *words = shlex.split(command, comments=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {Path(program).name: "rehearsal_kit.cli.main:main"}
    assert callable(_parser(words).parse_args(words).command)


def spelt_out(usage: str) -> list[str]:
    """A usage with everything that may be left out; one command for each of its alternatives."""
    values = {"NAME": STREAMS[0].name, "N": "2"}
    words = [values.get(word, word) for word in re.sub(r"[\[\]]| \.\.\.", "", usage).split()]
    return [" ".join(chosen) for chosen in itertools.product(*(word.split("|") for word in words))]


def test_the_table_has_every_command():
    assert sorted(command.split()[1] for command in commands(README)) == sorted(COMMANDS)


@pytest.mark.parametrize("usage", commands(README), ids=lambda usage: usage.split()[1])
def test_a_command_of_the_table_is_what_the_command_line_takes(usage):
    """Each is run in test_cli.py, test_doctor.py, test_compare.py, test_bench.py, or below."""
    for command in spelt_out(usage):
        require_parsed(command)


def test_a_table_has_every_strategy():
    assert sorted(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == sorted(STRATEGIES)


def test_lab_is_called_as_readme_says():
    require_parsed(block("lab command"))


def test_key_and_stop_do_what_the_table_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(tmp_path / "home"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["key", "FILE"]) == 0
        assert main(["stop"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "PRIVATE KEY" in (tmp_path / "FILE").read_text()


# In a notebook ------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_the_notebook_example_runs_as_it_stands(tmp_path, monkeypatch):
    """Statement by statement, with a scan of ours, one epoch, and a person who waits for its first steps."""
    code = block("notebook example")
    for there, here in (("/data/*.cxi", f"{tmp_path}/*.cxi"), ("epochs=10", "epochs=1")):
        assert code.count(there) == 1
        code = code.replace(there, here)
    monkeypatch.chdir(tmp_path)
    Beamline(folder=tmp_path, scans=1).write(0)
    names = {"frames": np.ones((2, 64, 64), dtype=np.float32)}
    try:
        for statement in ast.parse(code).body:
            part = compile(ast.Module([statement], []), "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if inspect.iscoroutine(awaited := eval(part, names)):
                asyncio.run(awaited)
            if "rk.dashboard" in ast.unparse(statement):
                names["session"].until(lambda session: session.timeline.last(Steps), timeout=60)
    finally:
        names["session"].close(), names["cluster"].close()
    session = names["session"]
    assert session.state == "finished"
    assert len(session.timeline.records(TaskArrived)) == len(session.table()) == 1
    assert (tmp_path / "model.onnx").exists()


# A strategy of one's own --------------------------------------------------------------------------------


def own_strategy():
    names = {"__name__": "__main__"}  # as a notebook's
    exec(block("strategy example"), names)
    return names["Balanced"]()


def arrivals(folder):
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    images = labels.reshape(-1, 1, 1, 1) + torch.randn(80, 1, 8, 8, generator=random)
    tasks = split_classes(images, labels, classes_per_task=2, test=(images, labels))
    return [write_task(task, folder / f"{number}.h5") for number, task in enumerate(tasks)]


def test_a_strategy_of_ones_own_crosses_to_the_workers_and_trains(tmp_path):
    strategy = loads(dumps(own_strategy()))
    spec = small_job(
        tmp_path / "run",
        strategy=strategy,
        network=ConvNet(classes=4, width=4),
        training=Training(batch=8, epochs=1),
        rehearsal=Rehearsal(representatives=4, candidates=4, capacity=20),
    )
    outcome, timeline, _ = alone(spec, *arrivals(tmp_path), FinishStream())
    assert outcome == "finished"
    assert len(timeline.records(TaskEnded)) == 2
    terms = timeline.records(Steps)[-1].terms
    assert set(terms) == {"new", "old"}
    assert terms["old"] > 0
