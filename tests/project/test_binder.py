"""The recipe in `binder/` by which mybinder.org builds an image: what can be said of it without building one.

What repo2docker makes of it is asked of repo2docker itself, which needs no Docker for it. The notebooks as
visitors run them, and their memory, are in test_notebooks.py: reached by files alone from outside of their
network, so that nothing of ours needs a port, or a proxy. A cluster that is left alone ends by itself, as
`test_an_unused_cluster_ends_by_itself` in tests/cluster/test_cluster.py shows with a kernel that is killed;
here it is seen that the notebooks ask for it soon.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from texts import README, ROOT

BINDER = ROOT / "binder"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RECIPE = yaml.safe_load((BINDER / "environment.yml").read_text())
BY_CONDA = {"dask": "dask-core", "torch": "pytorch-cpu"}
"""conda-forge's names where they are not those of PyPI."""
IDLE_S = 600
"""After which Binder ends a visitor's container that nobody uses."""


def packages() -> dict[str, str]:
    """Names in environment.yml and what they are bound to."""
    pattern = re.compile(r"^([a-z0-9-]+)((?:>=|=)[\d.]+)?$")
    return {(found := pattern.match(each))[1]: found[2] or "" for each in RECIPE["dependencies"]}


def cells(path) -> list[str]:
    found = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_repo2docker_takes_all_three_files():
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"Building conda environment for python={packages()['python'].lstrip('=')}" in said
    assert "unspecified" not in said
    for line in (
        "COPY --chown=0:0 src/binder/environment.yml ${REPO_DIR}/binder/environment.yml",
        "RUN ./binder/postBuild",
        'ENV R2D_ENTRYPOINT="${REPO_DIR}/binder/start"',
    ):
        assert line in said, said


def test_the_recipe_has_what_the_package_needs_and_a_python_that_it_runs_on():
    needed = {(r := Requirement(each)).name: str(r.specifier) for each in PROJECT["project"]["dependencies"]}
    (builder,) = PROJECT["build-system"]["requires"]
    needed["hatchling"] = str(Requirement(builder).specifier)
    found = packages()
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(found.pop("python")[1:])
    assert found.pop("pip") == ""
    assert found == {BY_CONDA.get(name, name): bounds for name, bounds in needed.items()}
    assert RECIPE.keys() == {"channels", "dependencies"}
    assert RECIPE["channels"] == ["conda-forge", "nodefaults"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_import_of_a_notebook_is_provided(path):
    imported = {
        name.partition(".")[0]
        for source in cells(path)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    names = {name: name for name in packages()} | {conda: pypi for pypi, conda in BY_CONDA.items()}
    of_a_kernel = {"IPython"}
    assert imported <= set(sys.stdlib_module_names) | set(names.values()) | of_a_kernel | {"rehearsal_kit"}


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_a_script_is_sound(name):
    path = BINDER / name
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)
    code = [line for line in text.splitlines()[1:] if not line.startswith("#")]
    assert not re.search(r"(^|[\s=\"'])/\w|https?:|index-url", "\n".join(code)), "no places of one machine"
    if name == "start":
        assert code[-1] == 'exec "$@"'
    else:
        # Without this repo2docker goes on with what is left of it.
        assert code[0] == "set -euo pipefail"


def test_start_leaves_the_command_as_it_is():
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.argv[1:])"
    words = [sys.executable, "-c", code, "a b"]
    done = subprocess.run([BINDER / "start", *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 ['a b']"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cluster_that_a_visitor_leaves_ends_before_binder_ends_the_visit(path):
    (start,) = (
        node
        for source in cells(path)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "rk.start_cluster"
    )
    given = {word.arg: ast.literal_eval(word.value) for word in start.keywords}
    assert given["idle_timeout_s"] < IDLE_S


def test_readme_opens_a_notebook_that_is_there():
    (place,) = re.findall(r"urlpath=lab/tree/([\w/.]+)", README)
    assert (ROOT / place) == NOTEBOOKS[0]
