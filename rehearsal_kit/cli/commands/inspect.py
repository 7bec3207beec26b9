"""`rehearsal-kit inspect`: what is seen in the file of a scan, and what would become of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.cli.reading_options import add_reading_options, reading_of
from rehearsal_kit.data.inspection import inspect_scan
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.doors.scan_file import opened_scan
from rehearsal_kit.data.scans.layouts.registry import LAYOUTS
from rehearsal_kit.data.scans.mapping_draft import draft_mapping
from rehearsal_kit.reports.scan_picture import scan_picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the file of a scan, HDF5 or .npz")
    parser.add_argument("--json", action="store_true", help="as data")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT.png", help="the mean frame, what is cut, and the positions"
    )
    parser.add_argument(
        "--mapping-draft",
        type=Path,
        metavar="OUT.toml",
        help="propose a mapping for a file of no known layout",
    )
    parser.add_argument("--size", type=int, default=64, metavar="N", help="pixels that the network sees (64)")
    parser.add_argument("--layouts", action="store_true", help="list the known layouts instead")
    add_reading_options(parser)
    parser.set_defaults(command=_inspect)


def _inspect(chosen: argparse.Namespace) -> int:
    if chosen.layouts:
        width = max(map(len, LAYOUTS))
        print("\n".join(f"{name.ljust(width)}  has {layout.mark}" for name, layout in LAYOUTS.items()))
        return 0
    if chosen.file is None:
        raise SettingsError("there is no FILE to inspect; give one, or --layouts.")
    reading = reading_of(chosen)
    if chosen.mapping_draft is not None:
        return _draft(chosen.file, chosen.mapping_draft, reading.roots)
    preparation = Preparation(size=chosen.size, reading=reading)
    scan, seen, mean = inspect_scan(chosen.file, preparation)
    print(json.dumps(seen.plain(), indent=1) if chosen.json else "\n".join(seen.lines()))
    if chosen.plot is not None:
        if chosen.plot.suffix.lower() != ".png":
            raise SettingsError(f"--plot {chosen.plot}: only pictures in PNG are made; call it OUT.png.")
        image = scan.object() if scan.has_object else None
        chosen.plot.write_bytes(scan_picture(mean, ~scan.good_pixels, scan.positions_px, image=image))
        if not chosen.json:
            print(
                f"picture: {chosen.plot}: the mean frame that is used, and the probe's positions over the "
                "object"
            )
    return 0


def _draft(path: Path, target: Path, roots: Sequence[str]) -> int:
    with opened_scan(path, roots) as file:
        text = draft_mapping(file)
    try:
        with target.open("x") as out:
            out.write(text)
    except FileExistsError as error:
        raise SettingsError(f"{target} is there already; name another file, or remove it.") from error
    print(f"{target}: check it, then rehearsal-kit inspect {path} --mapping {target}")
    return 0
