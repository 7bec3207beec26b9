"""Options by which a command line says of scans what their files do not."""

from __future__ import annotations

import argparse
from pathlib import Path

from rehearsal_kit.data.scans.mapping import read_mapping
from rehearsal_kit.data.scans.reading import ScanReading


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Declare them; see `reading_of`."""
    group = parser.add_argument_group("how files of scans are read, where they do not tell")
    group.add_argument("--layout", metavar="NAME", help="a known layout, instead of recognising it")
    group.add_argument(
        "--mapping", type=Path, metavar="FILE.toml", help="where the fields lie in files of no known layout"
    )
    group.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="links may lead there, too; may be repeated",
    )
    group.add_argument(
        "--positions", metavar="NAME", help="file with positions beside each scan, as {stem}.csv"
    )
    group.add_argument(
        "--reconstruction", metavar="NAME", help="file with the object beside each scan, as {stem}_product.h5"
    )
    group.add_argument("--crop", type=int, metavar="N", help="detector pixels of the square around the beam")
    group.add_argument(
        "--centre", type=float, nargs=2, metavar=("ROW", "COLUMN"), help="where the beam hits the detector"
    )
    group.add_argument("--orientation", type=int, metavar="0..7", help="how frames have to be turned")
    group.add_argument("--energy-ev", type=float, metavar="EV", help="of a photon")
    group.add_argument("--distance-m", type=float, metavar="M", help="from the sample to the detector")
    group.add_argument("--detector-pixel-m", type=float, metavar="M", help="side of a pixel of the detector")


def reading_of(chosen: argparse.Namespace) -> ScanReading:
    """What these options say; SettingsError for what is not allowed."""
    return ScanReading(
        layout=chosen.layout,
        mapping=None if chosen.mapping is None else read_mapping(chosen.mapping),
        roots=tuple(chosen.root),
        positions=chosen.positions,
        reconstruction=chosen.reconstruction,
        orientation=chosen.orientation,
        crop=chosen.crop,
        centre=None if chosen.centre is None else tuple(chosen.centre),
        energy_ev=chosen.energy_ev,
        distance_m=chosen.distance_m,
        detector_pixel_m=chosen.detector_pixel_m,
    )
