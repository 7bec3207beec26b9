"""What a run has told already: a restarted one repeats steps, but its curves must not show them twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from rehearsal_kit.record.branches import Place, decided_at, told_to
from rehearsal_kit.record.rank_records import Ended, Joined
from rehearsal_kit.record.record_lines import lines_backwards
from rehearsal_kit.record.records import (
    CheckpointFailed,
    CheckpointKept,
    CheckpointTaken,
    NotKept,
    Record,
    Restored,
    StateChanged,
    Steps,
    from_plain,
    to_plain,
)

OF_THE_MOMENT = (Joined, Ended, StateChanged, Restored, CheckpointKept, CheckpointFailed, NotKept)
"""Told again when they happen again: they are about ranks and disks, not about what was learned."""
OF_THE_CLOCK = frozenset({"time", "seconds", "waited", "hidden"})


class SeenRecords:
    """Knows a record again by all that does not depend on the clock: steps that are repeated are the same.

    records: in the order in which they were told. What is of a way that was left (`branches.decided_at`) does
    not count.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._known: dict[bytes, Place | None] = {}
        """Up to where each tells of a branch, where it is of the way that one takes."""
        self._steps: dict[int, int] = {}
        for record in records:
            self.leave(record)
            if isinstance(record, Steps):
                end = record.first + record.count
                self._steps[record.branch] = max(self._steps.get(record.branch, 0), end)
            else:
                self._known[_identity(record)] = told_to(record)

    @staticmethod
    def since(path: Path, checkpoint: int) -> SeenRecords:
        """What a run that goes on from this checkpoint might tell again, according to its file; 0: from none.

        What stands before the checkpoint was taken cannot come again, so only the end of the file is read: up
        to the checkpoint before, since this one may have been taken again after another restart.
        """
        return SeenRecords(reversed([*_since(path, checkpoint)]))

    def leave(self, record: Record) -> None:
        """If this is a decision that is told for the first time: what was told of later places is void."""
        decided = decided_at(record)
        if decided is None:
            return
        branch, here = decided
        if self._steps.get(branch, 0) > here:
            self._steps[branch] = math.floor(here)
        void = [known for known, at in self._known.items() if at and at[0] == branch and at[1] > here]
        for known in void:
            del self._known[known]

    def has(self, record: Record) -> bool:
        """Whether the same was told before."""
        if not self._known or isinstance(record, (*OF_THE_MOMENT, Steps)):  # steps are known one by one
            return False
        return _identity(record) in self._known

    def has_step(self, branch: int, step: int) -> bool:
        """Whether the losses of this step were told before."""
        return step < self._steps.get(branch, 0)


def _since(path: Path, checkpoint: int) -> Iterator[Record]:
    for line in lines_backwards(path):
        try:
            record = from_plain(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue  # damaged: the kernels say so; at worst a curve shows something twice
        if isinstance(record, CheckpointTaken) and record.checkpoint < checkpoint:
            return
        yield record


def _identity(record: Record) -> bytes:
    same = {name: value for name, value in to_plain(record).items() if name not in OF_THE_CLOCK}
    # Sorted inside as well: settings may stand in another order in what an earlier version wrote.
    return hashlib.blake2b(json.dumps(same, sort_keys=True).encode(), digest_size=16).digest()
