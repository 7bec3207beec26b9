"""Which records of a run that was rolled back, or killed, led to where one of its branches is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    Evaluated,
    InABranch,
    Record,
    Restored,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskSetAside,
    Unevaluated,
)
from rehearsal_kit.record.thinning import steps_before

Place = tuple[int, float]
"""A branch, and how many of its steps are passed: what is decided before a step lies at its number."""
BEGINNING = 0.5
"""What is told as a task begins lies this fraction of a step after what is decided before the same step."""
IN_VAIN = 0.25
"""What is decided after a step that came to nothing, which has no loss, lies this fraction of a step before
the next one."""
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
    if not isinstance(record, InABranch) or isinstance(record, OF_THE_WORLD):
        return True
    return place <= ends.get(record.branch, -1)


def decided_at(record: Record) -> Place | None:
    """Where ranks decided something, together or as they were asked to; None for any other record.

    Ranks that begin again after a kill may decide something at a step that was passed before it, with nothing
    decided since. From there they go another way: what was told of later places of this branch, further up in
    the file, is of the way that was left (`before`).
    """
    if isinstance(record, Applied) and record.rank == 0:
        return record.branch, record.step
    if isinstance(record, TaskSetAside) and record.task is not None:
        return record.branch, record.step - IN_VAIN * record.in_vain
    return None


def told_to(record: Record) -> Place | None:
    """Up to where this tells of a branch; None for what is no part of the way it takes."""
    if not isinstance(record, InABranch) or isinstance(record, OF_THE_WORLD):
        return None
    if isinstance(record, Applied) and record.rank != 0:
        return None  # told beside the file of rank 0, and so out of its order
    if isinstance(record, Steps):
        return record.branch, record.first + record.count
    begins = isinstance(record, TaskBegan) or (
        isinstance(record, Evaluated | Unevaluated) and record.after < record.task
    )
    return record.branch, record.step + BEGINNING * begins


def before(record: Record, place: Place) -> Record | None:
    """What of a record is not of a later place of this branch than this; None if nothing is."""
    to = told_to(record)
    if to is None or to[0] != place[0] or to[1] <= place[1]:
        return record
    return steps_before(record, math.floor(place[1])) if isinstance(record, Steps) else None
