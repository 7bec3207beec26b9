"""What a kernel knows of a run: from its files, from what it is told, without gaps and without repeats."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from rehearsal_kit.run_folder import RunFolder
from rehearsal_kit.telemetry import Record, from_plain
from rehearsal_kit.timeline import Timeline


class _Source:
    """One file of records, and how much of it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        """That are in the timeline."""
        self.early: dict[int, Record] = {}
        """Known, but others come before them; by line."""
        self._offset = self._read = 0

    def read_on(self) -> None:
        """Take in the whole lines that were written since this was called last."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            if self._read >= self.lines:
                self.early[self._read] = from_plain(json.loads(line))
            self._read += 1
        self._offset += len(whole)


class History:
    """Fills a timeline in the order of the files of rank 0 and of the coordinator; any thread may call."""

    def __init__(self, run: RunFolder) -> None:
        self.timeline = Timeline()
        self._sources = [_Source(run.generations), _Source(run.timeline)]
        self._lock = threading.Lock()

    def catch_up(self) -> None:
        """Take in what the files say and was not told."""
        with self._lock:
            for source in self._sources:
                source.read_on()
                self._append(source)

    def hear(self, record: Record, line: int | None, *, of_generations: bool = False) -> None:
        """Something was told; line: its number in the file, None if it stands in none."""
        with self._lock:
            source = self._sources[0 if of_generations else 1]
            if line is None:
                self.timeline.append(record)
            elif line >= source.lines:
                if line > source.lines:  # something was missed
                    source.read_on()
                source.early[line] = record
                self._append(source)

    def _append(self, source: _Source) -> None:
        source.early = {line: record for line, record in source.early.items() if line >= source.lines}
        while source.lines in source.early:
            self.timeline.append(source.early.pop(source.lines))
            source.lines += 1
