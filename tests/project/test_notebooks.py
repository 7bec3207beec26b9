"""What holds for every notebook, and that it runs from top to bottom."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from IPython.core.inputtransformer2 import TransformerManager

if TYPE_CHECKING:
    import nbformat

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


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


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all notebooks, which has imported plotly once: seconds each."""
    from jupyter_client.manager import AsyncKernelManager

    home = tmp_path_factory.mktemp("kernel")
    own = {"TMPDIR": str(home), "REHEARSAL_KIT_HOME": str(home / "clusters")}
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc")
    asyncio.run(manager.start_kernel(env={**os.environ, **own}))
    yield manager, home / "clusters" / "clusters"
    asyncio.run(manager.shutdown_kernel(now=True))


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, kernel):
    import nbclient
    import nbformat

    manager, clusters = kernel
    document = shortened(nbformat.read(path, as_version=4))
    document.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # it finds no name of the one before
    client = nbclient.NotebookClient(document, km=manager, timeout=600, store_widget_state=False)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    assert not list(clusters.iterdir())
