"""Previews for people, made and kept by rank 0: whatever goes wrong with them is said, and costs no more."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rehearsal_kit.rank.previewer import Previewer
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.record.records import NotKept


class PreviewUpkeep:
    """One rank's previews; only rank 0 makes any. What has gone wrong is told once, and not at every step."""

    def __init__(self, previewer: Previewer, reporter: Reporter, *, rank: int) -> None:
        self._previewer = previewer
        self._reporter = reporter
        self._mine = rank == 0

    def refresh(self, newest: int, *, step: int) -> None:
        """Make the preview that is wanted anew, now and then."""
        if self._mine:
            self._previewer.refresh(newest, step=step)
            self._tell()

    def keep(self, tasks: Sequence[int], *, after: int, step: int) -> None:
        """Keep previews of these tasks, as they are after one was trained."""
        if self._mine:
            self._previewer.keep(tasks, after=after, step=step)

    def close(self) -> None:
        """Wait until what was made is kept."""
        self._previewer.close()
        self._tell()

    def _tell(self) -> None:
        while (reason := self._previewer.news()) is not None:
            self._reporter.tell(NotKept(what="previews", reason=reason, time=time.time()))
