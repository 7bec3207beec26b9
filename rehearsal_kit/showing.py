"""Previews for people: whatever goes wrong with them is said, and costs the run nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rehearsal_kit.gallery import Gallery
from rehearsal_kit.run_folder import RunFolder


class Showing:
    """Makes and keeps previews on rank 0; a full disk or a file that is gone does not end the run.

    tell: is given what has gone wrong, once and not at every step.
    """

    def __init__(self, gallery: Gallery, run: RunFolder, *, rank: int, tell: Callable[[str], None]) -> None:
        self._gallery = gallery
        self._run = run
        self._mine = rank == 0
        self._tell = tell
        self._wrong = ""

    def refresh(self, newest: int, *, step: int) -> None:
        """Make the preview that is wanted anew, now and then."""
        if self._mine:
            with self._guarded():
                self._gallery.refresh(newest, step=step)

    def keep(self, tasks: Sequence[int], *, after: int, step: int) -> None:
        """Append previews of these tasks, as they are after one was trained, to the file of the run."""
        if self._mine:
            with self._guarded():
                self._gallery.keep(self._run.previews, tasks, after=after, step=step)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kind = type(error).__name__
            if kind != self._wrong:
                self._tell(f"previews cannot be made or kept, the run goes on without: {kind}: {error}")
            self._wrong = kind
