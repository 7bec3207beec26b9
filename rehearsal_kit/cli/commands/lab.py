"""`rehearsal-kit lab`: the notebooks, copied, and JupyterLab opened on them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rehearsal_kit.cli.lab import copy_notebooks, open_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("rehearsal-notebooks"),
        metavar="DIR",
        help="only you may write to it: notebooks import what lies beside them (rehearsal-notebooks)",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument(
        "--jupyter",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of JupyterLab itself, as --jupyter=--port=9000; may be given several times, and "
        "paths in it count from DIR",
    )
    parser.set_defaults(command=_lab)


def _lab(chosen: argparse.Namespace) -> int:
    for line in copy_notebooks(chosen.folder):
        print(line, flush=True)
    return open_lab(chosen.folder, browser=not chosen.no_browser, options=chosen.jupyter)
