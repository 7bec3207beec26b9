"""`rehearsal-kit demo`: the main job."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path

from rehearsal_kit.cli.demo import Demo, run_demo
from rehearsal_kit.cli.reading_options import add_reading_options, reading_of
from rehearsal_kit.reports.comparison import INCOMPLETE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    default = Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--run", type=Path, default=default, metavar="DIR", help="run folder, a new one")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="worker processes (one per GPU, else 2 on CPUs)"
    )
    parser.add_argument("--share-gpus", action="store_true", help="let several workers have one GPU")
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
    add_reading_options(parser)
    parser.set_defaults(command=_demo)


def _demo(chosen: argparse.Namespace) -> int:
    demo = Demo(
        run=chosen.run,
        seeds=tuple(chosen.seed),
        workers=chosen.workers,
        share_gpus=chosen.share_gpus,
        scans=tuple(chosen.scans),
        tasks=chosen.tasks,
        epochs=chosen.epochs,
        reading=reading_of(chosen),
    )
    comparison = run_demo(demo, lambda line: print(line, flush=True))
    print("\n" + comparison.text())
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(comparison.data(), indent=1, allow_nan=False))
    return INCOMPLETE if comparison.set_aside else 0
