"""Which records of a run that was rolled back led to where one of its branches is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rehearsal_kit.telemetry import (
    IN_A_BRANCH,
    BranchBegan,
    CheckpointTaken,
    Record,
    Restored,
    Steps,
    TaskArrived,
    TaskSetAside,
)
from rehearsal_kit.thinning import parted

OF_THE_WORLD = (TaskArrived, TaskSetAside, Restored)
"""Records of a position that are true in every branch: nobody can roll back what has arrived."""


Ends = Mapping[int, tuple[float, float]]
"""By branch: up to which place in the file, and up to before which step, its records lead to another one."""


def reach(
    branch: int, began: Mapping[int, BranchBegan], taken: Mapping[int, tuple[int, CheckpointTaken]]
) -> Ends:
    """Up to where the records of which branches lead to this one.

    taken: place and record of each checkpoint, by its number.
    """
    ends: dict[int, tuple[float, float]] = {branch: (math.inf, math.inf)}
    while branch in began and began[branch].checkpoint in taken:
        place, checkpoint = taken[began[branch].checkpoint]
        if checkpoint.branch >= branch:  # no run tells so; a file that does must not hang a kernel
            break
        branch, ends[checkpoint.branch] = checkpoint.branch, (place, checkpoint.step)
    return ends


def divided(record: Record, place: int, ends: Ends) -> tuple[Record | None, Record | None]:
    """What of a record at this place led to the branch that all of `ends` leads to, and what did not.

    The step counts as well as the place: after a kill, a checkpoint may be taken at an earlier step than was
    told of before, and what was told of later steps must not be in a branch that tells of them again.
    """
    if not isinstance(record, IN_A_BRANCH) or isinstance(record, OF_THE_WORLD):
        return record, None
    last, end = ends.get(record.branch, (-1.0, -1.0))
    if place > last:
        return None, record
    if isinstance(record, Steps):
        return parted(record, end)
    return (record, None) if record.step <= end else (None, record)
