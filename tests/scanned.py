"""What a timeline says, by looking through all records each time: slow, and plainly right."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

from rehearsal_kit.branches import OF_THE_WORLD
from rehearsal_kit.telemetry import (
    IN_A_BRANCH,
    UNTRAINED,
    Applied,
    BranchBegan,
    CheckpointTaken,
    Evaluated,
    StateChanged,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
    TasksReordered,
)


def split(records):
    """What led to the newest branch, and the rest by branch."""
    began = {r.branch: r for r in records if isinstance(r, BranchBegan)}
    branch = ([0, *began])[-1]
    places = {r.checkpoint: (i, r) for i, r in enumerate(records) if isinstance(r, CheckpointTaken)}
    reach = {branch: (len(records), math.inf)}
    while branch in began and began[branch].checkpoint in places:
        place, taken = places[began[branch].checkpoint]
        if taken.branch >= branch:
            break
        branch, reach[taken.branch] = taken.branch, (place, taken.step)
    led, left = [], {}
    for place, record in enumerate(records):
        everywhere = not isinstance(record, IN_A_BRANCH) or isinstance(record, OF_THE_WORLD)
        if not began or everywhere:
            led.append(record)
            continue
        last, end = reach.get(record.branch, (-1, -1))
        for part in _at_one_side(record, end) if place <= last else [record]:
            before = part.first < end if isinstance(part, Steps) else part.step <= end
            if place <= last and before:
                led.append(part)
            else:
                left.setdefault(part.branch, []).append(part)
    return led, left


def _at_one_side(record, end):
    """The record, or two of its steps where some are before step `end` and others are not."""
    if not isinstance(record, Steps) or not record.first < end < record.first + record.count:
        return [record]
    cut, count = end - record.first, record.count
    sides = []
    for first, losses in ((record.first, record.losses[:cut]), (end, record.losses[cut:])):
        share = len(losses) / count
        shared = {name: getattr(record, name) * share for name in ("seconds", "waited", "hidden")} | {
            name: round(getattr(record, name) * share) for name in ("representatives", "remote", "distilled")
        }
        busy = tuple(each * share for each in record.busy)
        sides.append(replace(record, first=first, losses=losses, busy=busy, **shared))
    return sides


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
