"""What a timeline says, by looking through all records each time: slow, and plainly right."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

from rehearsal_kit.record.branches import OF_THE_WORLD
from rehearsal_kit.record.records import (
    UNTRAINED,
    Applied,
    BranchBegan,
    CheckpointTaken,
    Evaluated,
    InABranch,
    StateChanged,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
    TasksReordered,
)


def without_what_was_left(records):
    """Without what was told, before a kill, of later steps than that of a decision further down."""
    kept = []
    for record in records:
        asked = isinstance(record, Applied) and record.rank == 0
        if asked or (isinstance(record, TaskSetAside) and record.task is not None):
            kept = [part for each in kept if (part := _until(each, record)) is not None]
        kept.append(record)
    return kept


def _until(record, decision):
    in_its_way = isinstance(record, InABranch) and not isinstance(record, OF_THE_WORLD)
    if not in_its_way or record.branch != decision.branch:
        return record
    end = decision.step - getattr(decision, "in_vain", False)  # such a step has no loss
    if not isinstance(record, Steps):
        begins = isinstance(record, TaskBegan) or getattr(record, "after", math.inf) < getattr(
            record, "task", -1
        )
        late = record.step > end or (record.step == decision.step and begins)
        return None if late else record
    left = [loss for at, loss in zip(record.at, record.losses, strict=True) if at < end]
    if len(left) == record.count:
        return record
    share = len(left) / record.count
    shared = {name: getattr(record, name) * share for name in ("seconds", "waited", "hidden")}
    shared |= {
        name: round(getattr(record, name) * share) for name in ("representatives", "remote", "distilled")
    }
    busy = tuple(each * share for each in record.busy)
    return replace(record, losses=tuple(left), busy=busy, **shared) if left else None


def split(records):
    """What led to the newest branch, and the rest by branch."""
    began = {r.branch: r for r in records if isinstance(r, BranchBegan)}
    branch = ([0, *began])[-1]
    places = {r.checkpoint: (i, r.branch) for i, r in enumerate(records) if isinstance(r, CheckpointTaken)}
    reach = {branch: len(records)}
    while branch in began and began[branch].checkpoint in places:
        place, parent = places[began[branch].checkpoint]
        if parent >= branch:
            break
        branch, reach[parent] = parent, place
    led, left = [], {}
    for place, record in enumerate(records):
        everywhere = not isinstance(record, InABranch) or isinstance(record, OF_THE_WORLD)
        if not began or everywhere or place <= reach.get(record.branch, -1):
            led.append(record)
        else:
            left.setdefault(record.branch, []).append(record)
    return led, left


def queue(records):
    """Name of every task by number and why it was set aside, if it was; and which numbers were begun."""
    tasks, begun = {}, set()
    for record in records:
        match record:
            case TaskArrived(task=task):
                tasks[task] = (record, None)
            case TaskBegan(task=task):
                begun.add(task)
            case BranchBegan(tasks=int() as count, aside=left_out):
                kept = {n: each for n, each in tasks.items() if n < count}
                tasks = {n: (a, s if n in left_out else None) for n, (a, s) in kept.items()}
            case TasksReordered(first=first, order=order):
                moved = [tasks.pop(task, None) for task in order]
                tasks |= {first + i: each for i, each in enumerate(moved) if each is not None}
            case TaskSetAside(task=given):
                fits = [
                    number
                    for number, (arrived, aside) in sorted(tasks.items())
                    if (arrived.name, arrived.path) == (record.name, record.path)
                    and aside is None
                    and number not in begun
                ]
                if fits:
                    number = given if given in fits else fits[0]
                    tasks[number] = (tasks[number][0], record)
    told = {n: (a.name, s and s.reason) for n, (a, s) in sorted(tasks.items())}
    return told, begun


def matrix(records, which):
    rows = {}
    for r in records:
        if isinstance(r, Evaluated) and r.split == which and r.after >= r.task:
            rows.setdefault(r.after, {})[r.task] = r.error
    size = 1 + max((max(after, *row) for after, row in rows.items()), default=-1)
    return [[rows.get(i, {}).get(j) for j in range(size)] for i in range(size)]


def untaught(records):
    before, untrained = {}, {}
    for r in records:
        if isinstance(r, Evaluated) and r.split == "test" and r.after < r.task:
            (untrained if r.after == UNTRAINED else before)[r.task] = r.error
    before = {**({0: untrained[0]} if 0 in untrained else {}), **before}
    tasks = range(1 + max([*before, *untrained], default=-1))
    return [before.get(t) for t in tasks], [untrained.get(t) for t in tasks]


def left_of_the_task(records):
    """Task begun last, batch and strategy now, its size and what is left of it; None before there is one."""
    place = max((i for i, r in enumerate(records) if isinstance(r, TaskBegan)), default=None)
    if place is None:
        return None
    told = (r for r in chain(reversed(records[:place]), records[place:]) if isinstance(r, Applied))
    first = next(((float(r.settings["batch"]), r.settings["strategy"]) for r in told), (1.0, ""))
    batch, strategy = first
    left = size = records[place].steps * batch
    for record in records[place + 1 :]:
        match record:
            case Applied(settings=settings):
                batch, strategy = float(settings["batch"]), settings["strategy"]
            case Steps():
                left = max(0.0, left - record.count * batch)
            case StateChanged(state="paused", reason=reason) if reason:
                left = size
            case TaskEnded():
                left = 0.0
    return batch, strategy, records[place].task, size, left, first[1]


def grows(records, share, window=5):
    ends = [place for place, record in enumerate(records) if isinstance(record, TaskEnded)][-window:]
    if not ends:
        return False
    return arrived(records) - arrived(records[: ends[0]]) > len(ends) - 1 + share + 1


def arrived(records):
    numbers = [record.task for record in records if isinstance(record, TaskArrived)]
    return numbers[-1] + 1 if numbers else 0


def sums(records):
    """Over steps: how many, and what is added up."""
    steps = [r for r in records if isinstance(r, Steps)]
    return {
        "count": sum(r.count for r in steps),
        "seconds": round(math.fsum(r.seconds for r in steps), 6),
        "representatives": sum(r.representatives for r in steps),
        "remote": sum(r.remote for r in steps),
        "distilled": sum(r.distilled for r in steps),
    }
