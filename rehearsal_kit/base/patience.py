"""Waiting by progress instead of by time: work that grows with the data may take as long as it gets on."""

from __future__ import annotations

import time


class Patience:
    """Lasts as long as a sign of progress changes at least every `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._sign: object = None
        self._since = time.monotonic()

    def lasts(self, sign: object) -> bool:
        """Whether to wait on, now that the sign is this; None stands for no sign at all."""
        now = time.monotonic()
        if sign != self._sign:
            self._sign, self._since = sign, now
        return now - self._since <= self.limit_s
