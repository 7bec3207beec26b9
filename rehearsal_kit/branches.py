"""Which records of a run that was rolled back led to where one of its branches is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rehearsal_kit.telemetry import IN_A_BRANCH, BranchBegan, Record, Restored, TaskArrived, TaskSetAside

OF_THE_WORLD = (TaskArrived, TaskSetAside, Restored)
"""Records of a position that are true in every branch: nobody can roll back what has arrived."""


def reach(
    branch: int, began: Mapping[int, BranchBegan], taken: Mapping[int, tuple[int, int]]
) -> dict[int, float]:
    """Up to which place the records of which branches lead to this one.

    taken: place and branch of each checkpoint, by its number.
    """
    ends: dict[int, float] = {branch: math.inf}
    while branch in began and began[branch].checkpoint in taken:
        place, parent = taken[began[branch].checkpoint]
        if parent >= branch:  # no run tells so; a file that does must not hang a kernel
            break
        branch, ends[parent] = parent, place
    return ends


def leads(record: Record, place: int, ends: Mapping[int, float]) -> bool:
    """Whether a record at this place led to the branch that all of `ends` leads to."""
    if not isinstance(record, IN_A_BRANCH) or isinstance(record, OF_THE_WORLD):
        return True
    return place <= ends.get(record.branch, -1)
