"""How the ranks of a generation get on: which one is lost, which failed first, which is stuck."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.cluster.protocol import HostStatus
from rehearsal_kit.record.run_states import INTERRUPTED, REGROUPED

QUIET_S = 10.0
"""Without progress for so long, people are told."""
LOOK_S = 1.0
"""Seconds between two looks at the ranks, unless something happens."""
PATIENCE_S = 3.0
"""How long the rank that took the others with it is looked for once one of these has failed."""

Statuses = Sequence[HostStatus | None]
"""Statuses in order of rank; None: its worker does not answer."""


class GenerationError(Exception):
    """Why a generation has ended.

    fatal: whether another one would end in the same way. device: the card that failed, if it was one.
    rank: the one that was lost, or failed by itself; None where it may have been any.
    """

    def __init__(
        self, reason: str, *, fatal: bool = False, device: str = "", rank: int | None = None
    ) -> None:
        super().__init__(reason)
        self.fatal = fatal
        self.device = device
        self.rank = rank


class Watchdog:
    """Judges one generation by what its hosts say; is told the time, so that it never waits."""

    def __init__(self, generation: int, *, ranks: int, recovery: Recovery, now: float) -> None:
        self.searching = False
        """Whether a rank has failed because of another that has not been found yet."""
        self._generation = generation
        self._stall_s = recovery.stall_s
        self._meeting_s = max(recovery.wait_s, recovery.stall_s)
        self._began = now
        self._beats = [(-1, now)] * ranks
        self._failed_at = math.inf
        self._quiet = False

    def outcome(self, statuses: Statuses, present: Sequence[bool], now: float) -> str:
        """finished, stopped, interrupted or regrouped, once all ranks have; GenerationError if it failed.

        present: whether the scheduler knows the worker still.
        """
        self._require_well(statuses, present, now)
        outcomes = {status.outcome if status is not None else "" for status in statuses}
        if "" in outcomes:
            return ""
        for early in (INTERRUPTED, REGROUPED):
            if early in outcomes:
                return early
        return "finished" if outcomes == {"finished"} else "stopped"

    def news(self, statuses: Statuses, now: float) -> tuple[int, float] | None:
        """The rank that holds up the others, and for how many seconds, 0 when it goes on again.

        None if that is not news. GenerationError if it has done so for too long.
        """
        waiting = [rank for rank, status in enumerate(statuses) if status is None or not status.training]
        never_met = any(beats < 0 for beats, _ in self._beats)
        # Who has passed a step boundary has met all others, also one that has been frozen since.
        met = any(status is not None and status.beats > 1 for status in statuses)
        if never_met and waiting and not met:  # they read their checkpoint, longer than any step may take
            if now - self._began > self._meeting_s:
                raise GenerationError(
                    f"rank {waiting[0]} has not met the others in {self._meeting_s:.0f} s; raise "
                    "Recovery(wait_s=...) if it takes so long to read a checkpoint."
                )
            return None
        for rank, status in enumerate(statuses):
            if never_met or (status is not None and status.beats != self._beats[rank][0]):
                self._beats[rank] = (0 if status is None else status.beats, now)
        return self._slowest(statuses, [now - at for _, at in self._beats])

    def _slowest(self, statuses: Statuses, still_s: Sequence[float]) -> tuple[int, float] | None:
        longest = max(still_s)
        silent = [rank for rank, status in enumerate(statuses) if status is None]
        culprit = silent[0] if silent else still_s.index(longest)
        if longest > self._stall_s:
            alike = not silent and min(still_s) > longest - 2 * LOOK_S
            raise GenerationError(
                ("no rank has made" if alike and len(still_s) > 1 else f"rank {culprit} has made no")
                + f" progress for {longest:.0f} s"
                + (" and its worker does not answer" if silent else "")
                + "; raise Recovery(stall_s=...) if that is normal."
            )
        was, self._quiet = self._quiet, longest > QUIET_S
        if self._quiet == was:
            return None
        return culprit, longest if self._quiet else 0.0

    def _require_well(self, statuses: Statuses, present: Sequence[bool], now: float) -> None:
        failed = sorted(
            (status.consequence, status.failed_at, rank, status.error)
            for rank, status in enumerate(statuses)
            if status is not None and status.outcome == "failed"
        )
        lost = [
            rank
            for rank, (status, there) in enumerate(zip(statuses, present, strict=True))
            if not _has_told(status, self._generation)
            and (not there or (status is not None and status.generation != self._generation))
        ]
        if failed and not failed[0][0]:
            rank = failed[0][2]
            status = statuses[rank]
            assert status is not None  # noqa: S101 - for the type checker; it says that it has failed
            raise GenerationError(
                f"rank {rank}: {status.error}", fatal=status.fatal, device=status.device, rank=rank
            )
        if lost:
            words = f"the worker of rank {lost[0]} is gone: its process has ended."
            raise GenerationError(words, rank=lost[0])
        if failed:
            # Ranks notice within milliseconds that another is gone, the scheduler often later.
            self.searching, self._failed_at = True, min(self._failed_at, now)
            if len(failed) == len(statuses) or now - self._failed_at > PATIENCE_S:
                raise GenerationError(f"rank {failed[0][2]}: {failed[0][3]}")


def _has_told(status: HostStatus | None, generation: int) -> bool:
    """Whether the rank has said why it failed; on a GPU its process is gone then, too."""
    return status is not None and status.generation == generation and status.outcome == "failed"
