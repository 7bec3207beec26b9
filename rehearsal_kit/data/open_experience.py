"""How a file that arrived becomes the experience it brings, whatever its kind, as long as it is that file."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rehearsal_kit.data.experience import Experience, Indices
from rehearsal_kit.data.field_tasks import open_fields
from rehearsal_kit.data.folder_order import require_as_it_arrived
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scan_tasks import split_scan
from rehearsal_kit.data.scans.doors.files import Facts
from rehearsal_kit.data.scans.doors.scan_file import Hdf5ScanFile, opened_scan
from rehearsal_kit.data.scans.opening import described, scan_in
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.tensor_tasks import is_tensor_task, open_tensor_task
from rehearsal_kit.record.commands import Arrived

KEPT_OPEN = 4
"""Experiences that a rank keeps at hand; a scan's positions, indices and masks take memory."""


def open_experience(arrived: Arrived, preparation: Preparation) -> Experience:
    """A file written by `write_task`, or a scan; the preparation is fitted to a scan if it was not yet.

    The file is opened once, so that all that is told of it is of one file: opened again, it may be another
    that took its place meanwhile, and shared file systems take their time each time.

    Raises:
        TaskError, ScanError: a file that cannot be used, with the reason.
    """
    reading = preparation.scan_reading
    with opened_scan(Path(arrived.path), reading.roots) as file:
        if arrived.fields is not None:
            return open_fields(arrived, file, roots=reading.roots)
        if isinstance(file, Hdf5ScanFile) and is_tensor_task(file.hdf5):
            return open_tensor_task(arrived, file=file.hdf5)
        scan = scan_in(file, reading)
        return split_scan(scan, arrived, preparation.fitted(scan, file=file), file=file)


def others_of(arrived: Arrived, reading: ScanReading) -> list[Path]:
    """The other files that what arrived is spread over; none of a file written by `write_task`.

    Raises:
        NotYetError: one of them, or the file itself, is not there yet or not whole.
        ScanError: no scan that can be read.
    """
    with opened_scan(Path(arrived.path), reading.roots) as file:
        if arrived.fields is not None:
            open_fields(arrived, file, roots=reading.roots)
        elif not (isinstance(file, Hdf5ScanFile) and is_tensor_task(file.hdf5)):
            described(file, reading)
        return file.others


class Shelf:
    """The few experiences that were used last; those of all other tasks are opened again when they are."""

    def __init__(self, size: int = KEPT_OPEN) -> None:
        self._size = size
        self._open: OrderedDict[int, Experience] = OrderedDict()
        self._count = 0

    def known(self, arrived: Arrived, preparation: Preparation) -> ArrivedExperience:
        """What a file brings, without opening it now. preparation: fitted, if it is a scan."""
        self._count += 1
        return ArrivedExperience(arrived=arrived, fitted=preparation, shelf=self, key=self._count)

    def opened(self, arrived: Arrived, preparation: Preparation) -> ArrivedExperience:
        """The same once it was seen that it can be used; TaskError or ScanError if it cannot."""
        facts = require_as_it_arrived(arrived)
        experience = open_experience(arrived, preparation)
        known = self.known(arrived, experience.preparation or preparation)
        known.unchanged_at = facts
        self.put(known.key, experience)
        return known

    def get(self, key: int) -> Experience | None:
        """One that is still open."""
        if key in self._open:
            self._open.move_to_end(key)
        return self._open.get(key)

    def put(self, key: int, experience: Experience) -> None:
        """Keep one at hand, instead of the one that was used longest ago."""
        self._open[key] = experience
        while len(self._open) > self._size:
            self._open.popitem(last=False)


@dataclass(kw_only=True, eq=False)
class ArrivedExperience:
    """The experience of a file, opened when something of it is asked for; it takes next to no memory itself.

    Whatever is asked raises a TaskError or a ScanError where the file cannot be read any more, or is not the
    one that arrived.
    """

    arrived: Arrived
    fitted: Preparation
    shelf: Shelf = field(repr=False)
    key: int
    unchanged_at: Facts | None = None
    """Size and time under which the file was last found to be what arrived."""

    @property
    def name(self) -> str:
        """Name of the experience, as people read it."""
        return self.arrived.name

    @property
    def path(self) -> Path:
        """The file it comes from."""
        return Path(self.arrived.path)

    @property
    def inputs(self) -> str:
        """The field that goes into the network."""
        return self._opened().inputs

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one sample as it is measured, before any preparation."""
        return self._opened().raw_shape

    @property
    def preparation(self) -> Preparation | None:
        """How samples are prepared from what is measured; None where they come prepared."""
        return self._opened().preparation

    @property
    def group(self) -> str | None:
        """The field by which the buffer keeps quotas, such as the class; None: the task."""
        return self._opened().group

    @property
    def simulated(self) -> bool:
        """Whether its measurements were computed rather than measured."""
        return self._opened().simulated

    @property
    def skipped(self) -> int:
        """Samples of the file that are in none of the splits."""
        return self._opened().skipped

    def count(self, split: str) -> int:
        """Samples of a split: "training", "watched" or "test"."""
        return self._opened().count(split)

    def load(self, split: str, places: Indices) -> dict[str, torch.Tensor]:
        """Samples of a split by their places in it, of the file that arrived and no other."""
        samples = self._opened().load(split, places)
        self.require_unchanged()  # afterwards: nothing that was written meanwhile is among them
        return samples

    def require_unchanged(self) -> None:
        """TaskError or ScanError unless its file is there, and the one that arrived."""
        self.unchanged_at = require_as_it_arrived(self.arrived, self.unchanged_at)

    def _opened(self) -> Experience:
        experience = self.shelf.get(self.key)
        if experience is None:
            self.require_unchanged()
            experience = open_experience(self.arrived, self.fitted)
            self.shelf.put(self.key, experience)
        return experience
