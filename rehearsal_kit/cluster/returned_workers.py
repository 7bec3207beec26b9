"""Which workers a run with fewer than it was started with may take: those that have stayed for a while."""

from __future__ import annotations

from collections.abc import Sequence

STEADY_S = 5.0
LONGEST_S = 3600.0


class ReturnedWorkers:
    """The workers that are there besides those of a run; is told the time, so that it never waits.

    Every time that the run has had to go on without a worker, the next one has to stay twice as long before
    it is taken: one that comes and goes would cost a wait and a part of a task each time.
    """

    def __init__(self, wait_s: float) -> None:
        self._steady_s = min(STEADY_S, wait_s)
        self._lost = 0
        self._since: dict[str, float] = {}

    def lose(self) -> None:
        """The run goes on with fewer than before."""
        self._lost += 1
        self._since = {}

    @property
    def steady_s(self) -> float:
        """Seconds that a worker has to be there, and free, without a break."""
        return float(min(self._steady_s * 2.0 ** max(0, min(self._lost, 60) - 1), LONGEST_S))

    def steady(self, free: Sequence[str], now: float) -> int:
        """How many have stayed long enough. free: addresses of the workers that could be ranks now."""
        self._since = {address: self._since.get(address, now) for address in free}
        return sum(now - since >= self.steady_s for since in self._since.values())
