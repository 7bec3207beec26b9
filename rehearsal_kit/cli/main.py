"""The command line: rehearsal-kit demo, compare, replay, lab, stop, doctor, key, bench."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rehearsal_kit.base.errors import ClusterError, RehearsalKitError
from rehearsal_kit.bench.command import add_bench
from rehearsal_kit.cli.demo import Demo, run_demo
from rehearsal_kit.cli.doctor.examination import examine
from rehearsal_kit.cli.doctor.finding import report, report_json, well
from rehearsal_kit.cli.lab import copy_notebooks, open_lab
from rehearsal_kit.cluster.cluster import running_clusters, stop_cluster
from rehearsal_kit.cluster.key_files import write_key
from rehearsal_kit.compare.command import add_compare
from rehearsal_kit.reports.comparison import INCOMPLETE
from rehearsal_kit.session.replay import OwnCode, replay_command

DESCRIPTION = "Distributed rehearsal-based continual learning, steered in real time from a notebook."
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 for an error that is told, 130 when interrupted.

    3 from `demo` and `compare` that have done their work but for tasks that were set aside.
    """
    chosen = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehearsal-kit", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="learn a stream of scans with and without rehearsal, compare"))
    lab = commands.add_parser("lab", help="copy the notebooks into a folder and open JupyterLab on them")
    lab.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("rehearsal-notebooks"),
        metavar="DIR",
        help="only you may write to it: notebooks import what lies beside them (rehearsal-notebooks)",
    )
    lab.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    lab.add_argument(
        "--jupyter",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of JupyterLab itself, as --jupyter=--port=9000; may be given several times, and "
        "paths in it count from DIR",
    )
    lab.set_defaults(command=_lab)
    stop = commands.add_parser("stop", help="end clusters that were left running")
    stop.add_argument("clusters", nargs="*", metavar="ID", help="which; all of yours by default")
    stop.set_defaults(command=_stop)
    doctor = commands.add_parser("doctor", help="what this machine has, what it lacks, and the fix for each")
    doctor.add_argument("--json", action="store_true", help="the same as data")
    doctor.set_defaults(command=_doctor)
    replay = commands.add_parser("replay", help="carry out recorded runs again, from their ledgers")
    replay.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a folder of runs")
    replay.add_argument(
        "--check", action="store_true", help="compare the weights bit for bit; 1 if any differ"
    )
    replay.add_argument("--into", type=Path, metavar="DIR", help="keep the replayed runs there")
    own = "of your own, that the run was made with: FILE.py:NAME, or MODULE:NAME if it is installed"
    replay.add_argument("--network", metavar="CODE", help=f"a network {own}")
    replay.add_argument("--strategy", metavar="CODE", help=f"a strategy {own}")
    replay.set_defaults(command=_replay)
    key = commands.add_parser(
        "key", help="write a key file for a Dask cluster with TLS that you start yourself"
    )
    key.add_argument("file", type=Path, metavar="FILE", help="a new one; only you will be able to read it")
    key.set_defaults(command=_key)
    add_compare(commands.add_parser("compare", help="all strategies on the same stream, with their costs"))
    add_bench(commands.add_parser("bench", help="measure the rehearsal buffer on this machine"))
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    default = Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--run", type=Path, default=default, metavar="DIR", help="run folder, a new one")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes (2)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], metavar="S", help="one or several (0)")
    parser.add_argument(
        "--scans",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="your scans, one task each, or one scan to divide into regions; else a beamline is simulated",
    )
    parser.add_argument("--tasks", type=int, default=4, metavar="N", help="simulated scans (4)")
    parser.add_argument("--epochs", type=int, default=None, metavar="N", help="passes over each task")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table as data")
    parser.set_defaults(command=_demo)


def _demo(chosen: argparse.Namespace) -> int:
    demo = Demo(
        run=chosen.run,
        seeds=tuple(chosen.seed),
        workers=chosen.workers,
        scans=tuple(chosen.scans),
        tasks=chosen.tasks,
        epochs=chosen.epochs,
    )
    comparison = run_demo(demo, lambda line: print(line, flush=True))
    print("\n" + comparison.text())
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(comparison.data(), indent=1, allow_nan=False))
    return INCOMPLETE if comparison.set_aside else 0


def _lab(chosen: argparse.Namespace) -> int:
    for line in copy_notebooks(chosen.folder):
        print(line, flush=True)
    return open_lab(chosen.folder, browser=not chosen.no_browser, options=chosen.jupyter)


def _stop(chosen: argparse.Namespace) -> int:
    running = {files.folder.name: files for files in running_clusters()}
    unknown = [name for name in chosen.clusters if name not in running]
    if unknown:
        print(f"no cluster {', '.join(unknown)}; running: {', '.join(running) or 'none'}", file=sys.stderr)
        return 1
    left = 0
    for name in chosen.clusters or running:
        try:
            print(stop_cluster(running[name]))
        except ClusterError as error:  # the others are stopped all the same
            print(f"{name}: {error}", file=sys.stderr)
            left = 1
    if not running:
        print("no cluster of yours is running.")
    return left


def _doctor(chosen: argparse.Namespace) -> int:
    findings = examine()
    print(report_json(findings) if chosen.json else report(findings))
    return 0 if well(findings) else 1


def _replay(chosen: argparse.Namespace) -> int:
    own = OwnCode(network=chosen.network, strategy=chosen.strategy)
    return replay_command(chosen.run, check=chosen.check, keep=chosen.into, own=own)


def _key(chosen: argparse.Namespace) -> int:
    write_key(chosen.file)
    print(f"{chosen.file} holds a new certificate and its private key; keep it to yourself.")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
