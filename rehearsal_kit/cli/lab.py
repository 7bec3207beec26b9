"""The notebooks, copied to where they can be changed, and JupyterLab opened on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from rehearsal_kit.base.errors import RunFolderError
from rehearsal_kit.cluster.code_folders import open_to_others


def copy_notebooks(folder: Path) -> list[str]:
    """Copy every notebook that is not there yet; says what was copied and what was kept."""
    said = []
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name, content in _notebooks().items():
            target = folder / name
            if target.exists():
                said.append(f"kept    {target} (yours; never written over)")
            else:
                target.write_bytes(content)
                said.append(f"copied  {target}")
    except OSError as error:
        raise RunFolderError(f"notebooks cannot be copied to {folder}: {error}.") from error
    return said


def open_lab(folder: Path, *, browser: bool, options: Sequence[str] = ()) -> int:
    """Run JupyterLab on loopback with a token until it is ended; returns its exit status.

    A notebook imports what lies beside it, that is how IPython is made: the folder must be yours alone to
    write to, else RunFolderError. JupyterLab itself runs there and imports nothing from it, nor from the
    current folder.

    options: of JupyterLab itself, for example `--port=9000`; what is set here can be overridden so. Relative
        paths in them count from the folder.
    """
    folder = folder.expanduser().resolve()
    if lack := open_to_others(folder):
        raise RunFolderError(
            f"notebooks import what lies beside them, and {lack}: programs of theirs would run as you. "
            "Choose a folder of your own, as `rehearsal-kit lab ~/rehearsal-notebooks`."
        )
    command = [
        sys.executable,
        "-P",  # else the current folder comes first on its path
        "-m",
        "jupyterlab",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.default_url=/lab/tree/01_quickstart.ipynb",
        # Kernels are reached through files of mode 0600 instead of ports that others could reach too.
        "--KernelManager.transport=ipc",
    ]
    if not browser:
        command.append("--no-browser")
    command += options
    return subprocess.run(command, check=False, cwd=folder).returncode  # noqa: S603 - our own command line


def _notebooks() -> dict[str, bytes]:
    with as_file(files("rehearsal_kit")) as package:
        # In a checkout they lie beside the package, in an installed wheel inside it.
        places = [package / "notebooks", package.parent / "notebooks"]
        place = next((p for p in places if p.is_dir()), None)
        if place is None:
            raise RunFolderError(f"no notebooks found in {' or '.join(map(str, places))}; install again.")
        return {path.name: path.read_bytes() for path in sorted(place.glob("*.ipynb"))}
