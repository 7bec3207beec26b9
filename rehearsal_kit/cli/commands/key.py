"""`rehearsal-kit key`: a key file for a Dask cluster with TLS that somebody starts."""

from __future__ import annotations

import argparse
from pathlib import Path

from rehearsal_kit.cluster.key_files import write_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a new one; only you will be able to read it")
    parser.set_defaults(command=_key)


def _key(chosen: argparse.Namespace) -> int:
    write_key(chosen.file)
    print(f"{chosen.file} holds a new certificate and its private key; keep it to yourself.")
    return 0
