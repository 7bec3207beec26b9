"""What holds for every notebook, and that it runs from top to bottom."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from binderkit import ROOT, Memory, build, members, network_of, require_no_network
from IPython.core.inputtransformer2 import TransformerManager

if TYPE_CHECKING:
    import nbformat

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_valid_with_cell_ids(path):
    import nbformat  # seconds, in every process that collects tests

    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    assert (document.nbformat, document.nbformat_minor) == (4, 5)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_stored(path):
    cells = json.loads(path.read_text())["cells"]
    assert not [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert "widgets" not in json.loads(path.read_text())["metadata"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_and_calls_only(path):
    for source in code_of(path):
        tree = ast.parse(TransformerManager().transform_cell(source), mode="exec", type_comments=False)
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(tree) if isinstance(node, defined)], source
        assert source.count("\n") < 15, source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_public_name_exists(path):
    import rehearsal_kit

    names = [
        node.attr
        for source in code_of(path)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rk"
    ]
    assert set(names) <= set(rehearsal_kit.__all__)


SHORTER = (
    (r"epochs=\d+", "epochs=1"),
    (r"interval_s=\d+", "interval_s=1"),
    (r"size=32", "size=16"),
    (r"batch=\d+", "batch=64"),
)
"""What a notebook says of how long it takes. That every cell runs depends on none of it, and the browser's
test has the first notebook train as it stands."""


def shortened(document: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same calls, in seconds."""
    for cell in document.cells:
        for pattern, instead in SHORTER:
            cell.source = re.sub(pattern, instead, cell.source)
    return document


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_shortened_is_there(path):
    import nbformat

    document = nbformat.read(path, as_version=4)
    before = [cell.source for cell in document.cells]
    assert [cell.source for cell in shortened(document).cells] != before


A_VISITOR = 2.0e9
"""Bytes of memory; with more, Binder kills the kernel."""
MOST = {"01_quickstart": 1.0e9}
"""What the notebook may take that Binder opens; the others come after it, in the same kernel."""


@pytest.fixture(scope="module")
def home():
    """Where a visitor of Binder would begin, all in one folder of a short name; see binderkit."""
    folder = Path(tempfile.mkdtemp(prefix="binder-"))
    yield build(folder)
    shutil.rmtree(folder)


def test_what_is_installed_carries_notebooks_types_and_licence(home):
    installed = {str(path.relative_to(home.packages)) for path in home.packages.rglob("*")}
    assert "rehearsal_kit/notebooks/01_quickstart.ipynb" in installed
    # A folder whose name .gitignore knows would be left out.
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "rehearsal_kit").rglob("*.py")} <= installed
    assert "rehearsal_kit/py.typed" in installed
    assert any(name.endswith("licenses/LICENSE") for name in installed)
    assert not [name for name in installed if name.startswith("tests")]


@pytest.fixture(scope="module")
def kernel(home):
    """One for all notebooks, which has imported plotly once: seconds each. It is reached by files alone."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    require_no_network()
    words = home.command(home.python, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    spec = home.folder / "kernels" / "binder" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": words, "display_name": "Python 3", "language": "python"}))
    specs = KernelSpecManager(kernel_dirs=[str(spec.parents[1])])
    manager = AsyncKernelManager(kernel_name="binder", transport="ipc", kernel_spec_manager=specs)
    manager.connection_file = str(home.folder / "kernel.json")
    asyncio.run(manager.start_kernel(env=home.environment(), cwd=str(home.checkout / "notebooks")))
    deadline = time.monotonic() + 60
    while network_of(manager.provisioner.pid) in ("", network_of("self")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield manager
    asyncio.run(manager.shutdown_kernel(now=True))


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom_as_on_binder(path, home, kernel):
    """On one processor, without a network, with no files but those of the checkout and of the environment.

    Check 3 of what can be said of Binder without building an image, and check 4, its memory.
    """
    import nbclient
    import nbformat

    document = shortened(nbformat.read(path, as_version=4))
    document.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # it finds no name of the one before
    document.cells.append(nbformat.v4.new_code_cell("import sys; print('pandas' in sys.modules)"))
    client = nbclient.NotebookClient(document, km=kernel, timeout=600, store_widget_state=False)
    network = network_of(kernel.provisioner.pid)
    memory = Memory(network)
    try:
        client.execute()
    finally:
        memory.close()
        client.kc.stop_channels()
    print(memory.table())
    assert memory.peak < MOST.get(path.stem, A_VISITOR), memory.table()
    # What is shown came through the kernel's own sockets, which are files: no port of ours is needed for it.
    outputs = [output.get("data", {}) for cell in document.cells for output in cell.get("outputs", ())]
    shown = any("application/vnd.jupyter.widget-view+json" in data for data in outputs)
    assert shown == ("rk.dashboard(" in path.read_text())
    if path == NOTEBOOKS[0]:  # 20 MB of every kernel, for a menu of checkpoints
        assert document.cells[-1].outputs[0].text == "False\n"
    assert [*members(network)] == [kernel.provisioner.pid]
    assert not list((home.checkout / ".rehearsal-kit" / "clusters").iterdir())
