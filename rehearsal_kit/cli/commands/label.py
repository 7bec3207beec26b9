"""`rehearsal-kit label`: objects for scans that have none, by phase retrieval, each in a file beside its
scan."""

from __future__ import annotations

import argparse

from rehearsal_kit.base.errors import RehearsalKitError, SettingsError
from rehearsal_kit.base.terminal_bar import TerminalBar
from rehearsal_kit.cli.reading_options import add_reading_options, reading_of
from rehearsal_kit.compare.demo_scans import find_files
from rehearsal_kit.data.labels.label import Label
from rehearsal_kit.data.labels.label_files import write_label
from rehearsal_kit.data.labels.phase_retrieval import CORRECTIONS, PhaseRetrieval, Start, retrieve
from rehearsal_kit.data.scans.doors.companions import companion_name
from rehearsal_kit.data.scans.layouts.own_label import BESIDE
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.scan import Scan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    default = PhaseRetrieval()
    parser.add_argument("scans", nargs="+", metavar="GLOB", help="scans without a reconstruction")
    parser.add_argument("--epochs", type=int, default=default.epochs, metavar="N", help="at most (30)")
    parser.add_argument(
        "--good-enough", type=float, metavar="E", help="end at this relative Fourier amplitude error"
    )
    parser.add_argument("--modes", type=int, default=default.modes, metavar="N", help="of the beam (3)")
    parser.add_argument(
        "--correct-positions", choices=CORRECTIONS, default="no", help="whether positions may be wrong (no)"
    )
    parser.add_argument("--threads", type=int, default=default.threads, metavar="N", help="of torch (1)")
    parser.add_argument("--device", default="cpu", help="of torch (cpu)")
    parser.add_argument(
        "--again", action="store_true", help="also scans that have an object, or a label, which is replaced"
    )
    add_reading_options(parser)
    parser.set_defaults(command=_label)


def _label(chosen: argparse.Namespace) -> int:
    settings = PhaseRetrieval(
        epochs=chosen.epochs,
        good_enough=chosen.good_enough,
        modes=chosen.modes,
        correct_positions=chosen.correct_positions,
        threads=chosen.threads,
    )
    reading, before, failed = reading_of(chosen), None, 0
    if reading.reconstruction is not None:
        raise SettingsError("--reconstruction names what is to be made here; leave it out.")
    for path in find_files(tuple(chosen.scans)):
        target = path.with_name(companion_name(path, BESIDE))
        if target == path or (target.exists() and not chosen.again):
            print(f"{path}: has a label, {target.name}; --again makes it anew")
            continue
        try:
            scan = open_scan(path, reading=reading)
            if scan.has_object and not chosen.again:
                print(f"{path}: has a reconstruction; --again makes a label all the same")
                continue
            before = _made(scan, settings, before=before, device=chosen.device)
            write_label(before, target)
        except RehearsalKitError as error:
            failed += 1
            print(f"{path}: no label: {error}")
            continue
        print(f"{target}: error {before.errors[-1]:.3f} after {len(before.errors)} epochs")
    print(f"train with them: rehearsal-kit demo --scans ... --reconstruction '{BESIDE}'")
    return 1 if failed else 0


def _made(scan: Scan, settings: PhaseRetrieval, *, before: Label | None, device: str) -> Label:
    """The label of one scan, begun with the beam of the one before if its frames have the same size."""
    fits = before is not None and before.probe.shape[1:] == scan.frame_shape
    start = Start(probe=before.probe) if before is not None and fits else None
    print(
        f"{scan.path}: {len(scan)} frames of {scan.frame_shape[0]} x {scan.frame_shape[1]} pixels", flush=True
    )
    # None: no bar where nobody sees one.
    with TerminalBar(total=settings.epochs, desc=scan.path.name, unit="epoch", disable=None) as bar:

        def tell(epoch: int, error: float) -> bool:
            bar.set_postfix_str(f"error {error:.3f}", refresh=False)
            bar.update()
            return True

        return retrieve(scan, settings, start=start, tell=tell, device=device)
