"""The command line: which commands there are; each is a module that is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from rehearsal_kit.base.errors import RehearsalKitError

DESCRIPTION = "Distributed rehearsal-based continual learning, steered in real time from a notebook."
INTERRUPTED = 130
COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("cli.commands.demo", "learn a stream of scans with and without rehearsal, compare"),
    "lab": ("cli.commands.lab", "copy the notebooks into a folder and open JupyterLab on them"),
    "inspect": ("cli.commands.inspect", "what is seen in the file of a scan, and what would become of it"),
    "label": ("cli.commands.label", "objects for scans that have none, by phase retrieval"),
    "stop": ("cli.commands.stop", "end clusters that were left running"),
    "launch": ("cli.commands.launch", "a cluster in a batch job, from the login node of an HPC system"),
    "jobs": ("cli.commands.jobs", "the jobs that were launched, where they are, and their logs"),
    "doctor": ("cli.commands.doctor", "what this machine has, what it lacks, and the fix for each"),
    "replay": ("cli.commands.replay", "carry out recorded runs again, from their ledgers"),
    "key": ("cli.commands.key", "write a key file for a Dask cluster with TLS that you start yourself"),
    "compare": ("compare.command", "all strategies on the same stream, with their costs"),
    "bench": ("bench.command", "measure the rehearsal buffer on this machine"),
}
"""The module of each command, whose `add_arguments` declares its options, and what it is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 for an error that is told, 130 when interrupted.

    3 from `demo` and `compare` that have done their work but for tasks that were set aside.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    chosen = _parser(words).parse_args(words)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status: int = chosen.command(chosen)
    except RehearsalKitError as error:
        print(f"rehearsal-kit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rehearsal-kit: interrupted; everything it had started has ended.", file=sys.stderr)
        return INTERRUPTED
    return status


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of the one asked for: only its module is imported."""
    parser = argparse.ArgumentParser(prog="rehearsal-kit", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        if words[:1] == [name]:
            importlib.import_module(f"rehearsal_kit.{module}").add_arguments(command)
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
