"""Frames of a large detector: read, cut and filled by us, in turns with h5py reading the same chunks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.bench.spread import MedianInterval
from rehearsal_kit.bench.table import Table
from rehearsal_kit.data.scans.mapping import FramesAt, PositionsAt, ScanMapping
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan import Scan

ROWS, COLUMNS, SIDE = 514, 1030, 256
BEAM = (260, 540)
AT_ONCE = 64
"""Frames that are asked for at once, as those of a shard are."""
FRAMES_AT = "/entry/data/data"


@dataclass(frozen=True)
class ReadingCost:
    """Seconds that each round took for all frames, and what they were."""

    frames: int
    stored_mib: float
    """MiB of the file."""
    plain_s: tuple[float, ...]
    ours_s: tuple[float, ...]

    @property
    def ratio(self) -> MedianInterval:
        """Our frames a second over those of h5py alone, of the two rounds that followed each other."""
        return MedianInterval.of([p / o for p, o in zip(self.plain_s, self.ours_s, strict=True)])

    def data(self) -> dict[str, Any]:
        """The same as plain values."""
        found = {
            name: value if math.isfinite(value) else None  # of few rounds there is no interval
            for name, value in asdict(self.ratio).items()
        }
        return {**asdict(self), "ratio": found}


def measure_reading(folder: Path, *, frames: int, rounds: int) -> ReadingCost:
    """Read a scan of so many frames, compressed as Eiger detectors do, in turns; the file lies in memory."""
    path = _written(folder / "scan.h5", frames)
    told = ScanReading(
        mapping=ScanMapping(
            frames=FramesAt(at=FRAMES_AT), positions=PositionsAt(row="/rows", column="/columns")
        ),
        crop=SIDE,
        energy_ev=8_000.0,
        distance_m=2.0,
        detector_pixel_m=75e-6,
    )
    scan = open_scan(path, reading=told)
    plain: list[float] = []
    ours: list[float] = []
    for each in range(rounds + 1):
        pair = [(plain, _plain(path, frames)), (ours, _ours(scan))]
        for seconds, read in pair if each % 2 else reversed(pair):
            took = _timed(read)
            if each:  # the first round reads the file into memory
                seconds.append(took)
    return ReadingCost(frames, path.stat().st_size / MIB, tuple(plain), tuple(ours))


def reading_table(cost: ReadingCost) -> Table:
    """Frames a second of both, and their ratio."""

    def a_second(seconds: tuple[float, ...]) -> str:
        return f"{cost.frames / float(np.median(seconds)):.0f}"

    found = cost.ratio
    line = (
        f"{cost.frames} frames of {ROWS} x {COLUMNS} uint16, cut to {SIDE} x {SIDE}",
        a_second(cost.plain_s),
        a_second(cost.ours_s),
        f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})",
    )
    columns = ("reading", "h5py frames/s", "ours frames/s", "ours / h5py (95 %)")
    notes = (
        f"{len(cost.ours_s)} rounds of either in turns, one pair after the other; bitshuffle and LZ4, a "
        "frame a",
        f"chunk, {cost.stored_mib:.0f} MiB in memory. h5py only decompresses; ours are float32 counts with "
        "gaps",
        f"and dead pixels filled ({AT_ONCE} frames at once). The next frames are read while some are filled,",
        "so the ratio depends on whether another core is free.",
    )
    return Table("Reading", columns, (line,), notes)


def _written(path: Path, frames: int) -> Path:
    """A scan of a detector with a gap of 8 rows and one of 4 columns across the beam."""
    import hdf5plugin  # noqa: PLC0415 - half a second, for this measurement alone

    random = np.random.default_rng(0)
    rows, columns = np.ogrid[:ROWS, :COLUMNS]
    beam = 2000 * np.exp(-((rows - BEAM[0]) ** 2 + (columns - BEAM[1]) ** 2) / (2 * 40**2))
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            FRAMES_AT,
            (frames, ROWS, COLUMNS),
            np.uint16,
            chunks=(1, ROWS, COLUMNS),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        for number in range(frames):
            counts = random.poisson(beam).astype(np.uint16)
            counts[250:258] = counts[:, 500:504] = counts[7, 9] = np.iinfo(np.uint16).max
            data[number] = counts
        file["/rows"], file["/columns"] = np.arange(frames) * 1e-8, np.arange(frames) * 1e-8
    return path


def _plain(path: Path, frames: int) -> Callable[[], None]:
    def read() -> None:
        with h5py.File(path, "r") as file:
            data = file[FRAMES_AT]
            for begin in range(0, frames, AT_ONCE):
                data[begin : begin + AT_ONCE]

    return read


def _ours(scan: Scan) -> Callable[[], None]:
    def read() -> None:
        with scan.opened() as file:
            for begin in range(0, len(scan), AT_ONCE):
                scan.frames(range(begin, min(begin + AT_ONCE, len(scan))), file=file)

    return read


def _timed(read: Callable[[], None]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began
