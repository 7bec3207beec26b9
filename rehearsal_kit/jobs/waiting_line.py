"""Where a job is, in one line that is renewed; in a file, a pipe or a notebook, a line for every change."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rehearsal_kit.base.terminal_bar import TerminalBar


class WaitingLine:
    """Tells what is waited for, and for how long."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._said = ""
        self._bar = TerminalBar(bar_format="{desc}", delay=1e-3) if sys.stderr.isatty() else None

    def __enter__(self) -> WaitingLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, words: str) -> None:
        """This is how it stands now."""
        if self._bar is not None:
            self._bar.set_description_str(
                f"{words}, for {time.monotonic() - self._began:.0f} s", refresh=True
            )
        elif words != self._said:
            print(words, file=sys.stderr, flush=True)
        self._said = words
