"""The file of records that rank 0 writes, and its cache for kernels that begin to read it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from rehearsal_kit.record.ledger import Ledger
from rehearsal_kit.record.records import Record, to_plain
from rehearsal_kit.record.timeline_cache import condense

LOG = logging.getLogger(__name__)
EVERY = 10_000
"""Lines after which the cache is brought up to date."""


class TimelineFile:
    """One writer. The cache is made from the file, by a thread of its own: training does not wait for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ledger: Ledger | None = None
        self._condensing: threading.Thread | None = None

    def append(self, record: Record) -> int:
        """Add one line and return its number, from 0; OSError where it cannot be written, not even a part."""
        if self._ledger is None:
            self._ledger = Ledger(self._path, durable=False)
        line = self._ledger.append(to_plain(record))
        if (line + 1) % EVERY == 0 and (self._condensing is None or not self._condensing.is_alive()):
            self._condensing = threading.Thread(target=self._condense, name="condense-timeline", daemon=True)
            self._condensing.start()
        return line

    def close(self) -> None:
        """Close the file; nothing can be appended after."""
        if self._condensing is not None:
            self._condensing.join()
        if self._ledger is not None:
            self._ledger.close()

    def _condense(self) -> None:
        try:
            condense(self._path)
        except (OSError, ValueError) as error:  # kernels read more lines then
            LOG.warning("the cache of %s could not be brought up to date: %s", self._path, error)
