"""Who may steer a run, and which wishes were accepted: written down first, then passed on to rank 0.

On the scheduler's side, under the lease on the run folder, so that there is one writer and one order. A wish
is told apart by the kernel that made it and its number: two kernels may well give the same number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from rehearsal_kit.record.ledger import Ledger
from rehearsal_kit.record.run_folder import RunFolder


class Acceptance:
    """Who may steer one run, and which wishes were accepted.

    A kernel is known by its holder, a text that begins with the name of its connection.
    """

    def __init__(self, run: RunFolder, holder: str) -> None:
        self.holder = holder
        """The kernel that may steer; empty once that has gone."""
        self.waiting: list[str] = []
        """Accepted wishes that rank 0 has not been given yet, as JSON."""
        self._run = run
        self._lost = ""
        """The kernel whose connection broke while it steered; it may come back."""
        self._newest: dict[str, int] = {}
        """Number of the newest wish that was accepted, by kernel."""
        self._ledger = Ledger(run.wishes, durable=True)

    def take(self, holder: str, *, even_if_held: bool) -> bool:
        """Have this kernel steer from now on, where it may; whether that is new."""
        self.returned(holder)
        if holder == self.holder or (self.holder and not even_if_held):
            return False
        self.holder, self._lost = holder, ""
        return True

    def returned(self, holder: str) -> None:
        """This kernel is heard from: if it was lost while it steered, and no other came, it steers again."""
        if not self.holder and holder == self._lost:
            self.holder, self._lost = holder, ""

    def lost(self, connection: str) -> None:
        """A kernel has left or died, or its connection is broken: whoever comes next may steer."""
        if self.holder.partition("/")[0] == connection:
            self._lost, self.holder = self.holder, ""

    def release(self, holder: str) -> None:
        """This kernel does not steer any more."""
        if holder == self.holder:
            self.holder = ""

    def accept(self, wishes: Sequence[str], holder: str) -> str:
        """Write down wishes (JSON) of a kernel that may steer; returns why not, with the numbers of those.

        What was accepted before is not accepted twice: a kernel that was not answered asks again, perhaps
        when another one steers already.
        """
        self.returned(holder)
        plain: list[dict[str, Any]] = [json.loads(text) for text in wishes]
        new = [wish for wish in plain if wish["number"] > self._newest.get(holder, 0)]
        if new and holder != self.holder:
            return refusal(
                new,
                "another kernel steers this run; this one watches. To steer from here: "
                f"rk.attach({str(self._run.path)!r}, take=True)",
            )
        for place, wish in enumerate(new):
            owned = {**wish, "holder": holder}
            try:
                self._ledger.append({"time": time.time(), **owned})
            except OSError as error:
                reason = f"it cannot be written down: {error}; make room, and ask again"
                return refusal(new[place:], reason)
            self._newest[holder] = wish["number"]
            self.waiting.append(json.dumps(owned))
        return ""

    def close(self) -> None:
        """Close the ledger; nothing is accepted any more."""
        self._ledger.close()


def refusal(wishes: Sequence[dict[str, Any]], reason: str) -> str:
    """What a kernel is told of these wishes, as plain values, that take no effect."""
    return f"not accepted: {named(wishes)}. {reason[0].upper()}{reason[1:]}."


def named(wishes: Sequence[dict[str, Any]]) -> str:
    """Wishes, as plain values, in words by which people tell them apart."""
    return ", ".join(f"{wish['kind']} (no. {wish['number']})" for wish in wishes)


def too_late(state: str) -> str:
    """The reason where a run is over; state: what has become of it."""
    return f"it came too late: this run is {state}; rk.resume(run, cluster) goes on, then ask again"
