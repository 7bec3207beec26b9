"""Where wishes for rank 0 arrive, whoever brings them."""

from __future__ import annotations

from typing import Protocol


class Mailbox(Protocol):
    """Where wishes for rank 0 arrive, as JSON; looked into at every step boundary."""

    def empty(self) -> bool:
        """Whether nothing lies there now."""

    def get(self) -> str:
        """Take out the next."""
