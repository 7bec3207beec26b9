"""Where the scans of a demo come from: a simulated beamline, or files of the user's."""

from __future__ import annotations

import glob
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.folder_order import matching
from rehearsal_kit.data.scan_tasks import regions
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.simulated_beamline import Beamline, convert
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.session.session import Session

REGIONS = 4
"""Tasks that a single scan is divided into."""


@dataclass(frozen=True, kw_only=True)
class FromFiles:
    """Tasks that are there from the beginning."""

    tasks: Sequence[Arrived]

    @property
    def expected(self) -> int:
        """How many tasks will come."""
        return len(self.tasks)

    def begin(self, session: Session) -> None:
        """Tell a session of them."""
        for task in self.tasks:
            session.submit(task)


@dataclass(frozen=True, kw_only=True)
class FromBeamline:
    """Scans that appear one after the other in a folder."""

    pattern: str
    expected: int

    def begin(self, session: Session) -> None:
        """Tell a session where to look."""
        session.watch(self.pattern)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files of all patterns, in natural order within each; a name without wildcards need not exist.

    Raises ScanError for a pattern that matches nothing.
    """
    found: list[Path] = []
    for pattern in patterns:
        matches = matching(str(Path(pattern).expanduser().absolute()))
        if not matches and glob.has_magic(pattern):
            raise ScanError(f"no file matches {pattern!r}; check the folder, and quote the pattern.")
        found += [Path(match).absolute() for match in matches or [pattern]]
    return list(dict.fromkeys(found))


def from_files(
    files: Sequence[Path], folder: Path, *, seed: int, size: int, reading: ScanReading | None = None
) -> FromFiles:
    """Each file is a task; a single one is divided into regions instead.

    Reconstructions without counts are written to `folder` as CXI, with counts simulated from them. Of
    several files, one that cannot be used is still submitted: the ranks set it aside and say why where
    everybody looks. A single one that cannot be used raises its ScanError. reading: as in Preparation.
    """
    if len(files) == 1:
        path = convert(files[0], folder, seed=seed)
        return FromFiles(tasks=regions(path, REGIONS, size=size, reading=reading))
    tasks = []
    for file in files:
        try:
            path = convert(file, folder, seed=seed)
        except ScanError:
            path = file
        tasks.append(Arrived(name=file.stem, path=str(path)))
    return FromFiles(tasks=tasks)


@contextmanager
def running_beamline(beamline: Beamline) -> Iterator[FromBeamline]:
    """Let a simulated beamline write its scans in a thread, as long as the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=beamline.run, args=(stop,), name="beamline", daemon=True)
    thread.start()
    try:
        yield FromBeamline(pattern=str(beamline.folder / "scan_*.cxi"), expected=beamline.scans)
    finally:
        stop.set()
        thread.join()
