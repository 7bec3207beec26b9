"""Asks for a preview without ever waiting for it: rank 0 may be frozen, and the panel has to say so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from rehearsal_kit.record.preview_files import Preview, Wanted

Ask = Callable[[Wanted], "Preview | None"]
Answer = Future["Preview | None"]
MOMENT_S = 0.1
"""Longer than rank 0 takes when it is well, and nothing that a person would notice."""


class AskedPreview:
    """Asks for previews in a thread of its own, one at a time; `ask` may take as long as it does."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._under_way: tuple[Wanted, Answer] | None = None

    @property
    def waits(self) -> bool:
        """Whether there is an answer, or will be one, that nobody has taken."""
        return self._under_way is not None

    def answer(self, wanted: Wanted) -> Answer:
        """The newest preview of what is wanted; the answer may not be there yet."""
        asked = self._under_way
        if asked is None or (asked[1].done() and asked[0] != wanted):
            asked = wanted, self._begin(wanted)
            wait([asked[1]], MOMENT_S)
        self._under_way = None if asked[1].done() else asked
        return asked[1]

    def _begin(self, wanted: Wanted) -> Answer:
        answer: Answer = Future()

        def run() -> None:
            try:
                answer.set_result(self._ask(wanted))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=run, name="rehearsal-kit-preview", daemon=True).start()
        return answer
