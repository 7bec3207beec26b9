"""What a kernel knows of a run: from its files, from what it is told, without gaps and without repeats."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from rehearsal_kit.base.terminal_bar import TerminalBar
from rehearsal_kit.record.record_lines import RecordLines
from rehearsal_kit.record.records import Record
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.record.timeline_cache import begin

LOG = logging.getLogger(__name__)
EARLY = 10_000
"""Records that are held while others before them are missing; what is told beyond is read from the file."""
LONG = 2**26
"""Bytes whose reading takes seconds: then it is said and shown."""


class _Source:
    """One file of records, and how much of it is known."""

    def __init__(self, path: Path) -> None:
        self.known = 0
        """Lines that are in the timeline, or were left out of it."""
        self._file = RecordLines(path)
        self._early: dict[int, Record] = {}
        """Known, but others come before them; by line."""

    def catch_up(self, timeline: Timeline) -> None:
        """Take in the whole lines that were written since this was called last."""
        if not self.known:
            self._begin(timeline)
        path = self._file.path
        left = (path.stat().st_size if path.is_file() else 0) - self._file.offset
        if left < LONG:  # no bar: this is called every second, and one takes a lock that all bars share
            for _, record in self._file.read(self.known):
                self._take(timeline, record)
        else:
            self._show_reading(timeline, left)
        self._follow(timeline)

    def hear(self, timeline: Timeline, record: Record, line: int) -> None:
        """What stands at this line was told."""
        if line > self.known:  # something was missed
            if len(self._early) < EARLY:
                self._early[line] = record
            self.catch_up(timeline)
        elif line == self.known:
            self._take(timeline, record)
            self._follow(timeline)

    def _show_reading(self, timeline: Timeline, left: int) -> None:
        with TerminalBar(
            desc=f"reading {self._file.path.name}", total=left, unit="B", unit_scale=True, leave=False
        ) as bar:
            before = self._file.offset
            for _, record in self._file.read(self.known):
                self._take(timeline, record)
                bar.update(self._file.offset - before)
                before = self._file.offset

    def _begin(self, timeline: Timeline) -> None:
        begun = begin(self._file.path, timeline)
        self._file, self.known = begun.lines, begun.lines.number
        if begun.trouble:
            LOG.warning("%s; all of %s is read instead", begun.trouble, self._file.path)

    def _take(self, timeline: Timeline, record: Record | None) -> None:
        if record is not None:
            timeline.append(record)
        self._early.pop(self.known, None)
        self.known += 1

    def _follow(self, timeline: Timeline) -> None:
        while self.known in self._early:
            self._take(timeline, self._early[self.known])


class TimelineTail:
    """Fills a timeline in the order of the files of rank 0 and of the coordinator; any thread may call."""

    def __init__(self, run: RunFolder) -> None:
        self.timeline = Timeline(bounded=True)
        self._generations, self._timeline = _Source(run.generations), _Source(run.timeline)
        self._lock = threading.Lock()

    def catch_up(self) -> None:
        """Take in what the files say and was not told."""
        with self._lock:
            for source in (self._generations, self._timeline):
                source.catch_up(self.timeline)

    def hear(self, record: Record, line: int | None, *, of_generations: bool = False) -> None:
        """Something was told; line: its number in the file, None if it stands in none."""
        with self._lock:
            if line is None:
                self.timeline.append(record)
            else:
                source = self._generations if of_generations else self._timeline
                source.hear(self.timeline, record, line)
