"""The house is in order: layers, style, types, the public face, and what the wheel carries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import rehearsal_kit
from rehearsal_kit.learning.networks.registry import NETWORKS
from rehearsal_kit.learning.strategies.registry import STRATEGIES

ROOT = Path(__file__).parents[2]
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
    ],
    ids=["ruff check", "ruff format", "mypy", "layers"],
)
def test_in_order(command):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_public_names_are_sorted_complete_and_real():
    written = rehearsal_kit.__all__[: -len(NETWORKS) - len(STRATEGIES)]
    in_order = sorted(written, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert written == in_order
    assert rehearsal_kit.__all__ == [*written, *sorted(NETWORKS), *STRATEGIES]
    assert all(getattr(rehearsal_kit, name).__doc__ for name in rehearsal_kit.__all__)
    modules = {path.stem for path in (ROOT / "rehearsal_kit").iterdir()}
    helpers = {"annotations", "importlib", "Any", "TYPE_CHECKING"}
    public = {name for name in dir(rehearsal_kit) if not name.startswith("_")} - modules - helpers
    assert public == set(rehearsal_kit.__all__)
    with pytest.raises(AttributeError, match="public names are Arrived"):
        _ = rehearsal_kit.Nothing


def test_the_buffer_needs_neither_dask_nor_widgets_and_a_kernel_begins_without_pandas():
    code = (
        "import sys, rehearsal_kit as rk; assert 'torch' not in sys.modules, 'names alone need no torch';"
        "rk.DistributedBuffer, rk.Rehearsal;"
        "print([name for name in ('dask', 'distributed', 'ipywidgets', 'plotly') if name in sys.modules]);"
        "rk.Session, rk.start_cluster, rk.attach; print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]


def test_the_version_is_semantic_and_the_same_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", rehearsal_kit.__version__)
    assert version("rehearsal-kit") == rehearsal_kit.__version__


def test_no_file_is_longer_than_400_lines():
    long = {
        p.name: n
        for p in (ROOT / "rehearsal_kit").rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


OPENED_BY_NAME = {
    "h5py.File",
    "h5py.is_hdf5",
    "np.load",
    "numpy.load",
    "loadmat",
    "torch.load",
    "open_memmap",
}
ON_OUR_OWN_FILES = {
    "record/preview_files.py",
    "data/scans/cxi_writing.py",
    "buffer/shards.py",  # buffers that earlier versions have written
    "data/labels/label_files.py",  # write_label
    "data/tensor_tasks.py",  # write_task
    "bench/run/reading.py",  # a scan that it has just written
}
DOORS = {"data/scans/doors/arrays.py", "data/scans/doors/hdf5.py"}


def test_files_from_elsewhere_are_opened_by_the_doors_alone():
    package = ROOT / "rehearsal_kit"
    opening = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in OPENED_BY_NAME
    }
    assert opening == DOORS | ON_OUR_OWN_FILES
    readers = [
        node
        for node in ast.walk(ast.parse((package / "data/tensor_tasks.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "h5py.File"
    ]
    assert [ast.unparse(node.args[1]) for node in readers] == ["'w'"]


def rooms() -> list[str]:
    """The rooms of the contract, from the top down."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [room.strip() for layer in contracts[0]["layers"] for room in layer.split(":")]


def test_what_all_ranks_hold_alike_is_changed_by_its_own_methods_only():
    """Written from several files, nobody could say what leads from one state to the next."""
    own = {"run_state.py": "run_state", "task_loader.py": "loader", "learner.py": "learner"}
    written = [
        f"{path.name}:{target.lineno}: {ast.unparse(target)}"
        for path in (ROOT / "rehearsal_kit").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
        and ast.unparse(target.value).split(".")[-1].removeprefix("_") in own.values()
        and path.name not in own
    ]
    assert not written


def test_the_map_in_contributing_is_the_contract_and_every_room_says_where_to_begin():
    text = CONTRIBUTING.read_text()
    table = text[text.index("| room |") : text.index("know nothing of each other")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == rooms()
    for room in rooms():
        said = ast.get_docstring(ast.parse((ROOT / "rehearsal_kit" / room / "__init__.py").read_text()))
        begins = re.findall(r"[Bb]egin at ((?:\w+\.py(?: and | for | at |, |)*)+)", said)
        assert begins, room
        named = re.findall(r"\w+\.py", said)
        assert all((ROOT / "rehearsal_kit" / room / name).exists() for name in named), (room, named)


def test_texts_are_short_and_point_only_to_what_is_there():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    texts = [ROOT / "README.md", CONTRIBUTING, *(ROOT / "rehearsal_kit").rglob("*.md")]
    for text in texts:
        for link in re.findall(r"\]\(([^)#][^)]*)\)", text.read_text()):
            assert link.startswith("https://") or (text.parent / link).exists(), (text, link)
        for path in re.findall(
            r"`((?:binder|tests|rehearsal_kit|notebooks|\.ci|\.github)/[\w/.]+)`", text.read_text()
        ):
            assert (ROOT / path).exists(), (text, path)


def test_recipes_name_files_that_are_there():
    recipes = CONTRIBUTING.read_text().partition("## Recipes")[2].partition("## How we write")[0]
    for path in re.findall(r"`([\w/]+\.py)`", recipes):
        if path not in {"data/scans/layouts/NAME.py", "command.py"}:
            assert (ROOT / path).exists() or (ROOT / "rehearsal_kit" / path).exists(), path


def test_no_docstring_begins_with_a_bare_preposition():
    bare = re.compile(r"(Of|From|For|To|By|In|On|At|With|Until|Since|After|Before|Between|As) ")
    found = {}
    for path in (ROOT / "rehearsal_kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for said in docstrings(node):
                if bare.match(said):
                    found[f"{path.relative_to(ROOT)}: {said[:50]}"] = said
    assert not found, "\n".join(found)


def docstrings(node: ast.AST) -> list[str]:
    """What a node says of itself, or of the attribute before it."""
    bodies = [getattr(node, "body", [])] if isinstance(getattr(node, "body", None), list) else []
    return [
        each.value.value
        for body in bodies
        for each in body
        if isinstance(each, ast.Expr)
        and isinstance(each.value, ast.Constant)
        and isinstance(each.value.value, str)
    ]
