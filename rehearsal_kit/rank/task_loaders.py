"""The loader of a task: of a new one, and of one that a checkpoint was taken in the middle of.

An epoch that was begun on another number of ranks is dealt out once more: what was left of it then, in the
order in which it was left, so that every sample is still trained once. A checkpoint says how often it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rehearsal_kit.buffer.row_layout import IDENTITY, Samples, joined
from rehearsal_kit.data.task_loader import Dealing, TaskLoader, dealt_out, first_left
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.data.training_shard import TrainingShard
from rehearsal_kit.rank.context import RankContext


@dataclass(frozen=True)
class UnfinishedTask:
    """The task that a checkpoint was taken in the middle of, as far as it is still there."""

    loader: TaskLoader | None
    anew: bool = False
    """Whether a task of it is gone: weights and optimizer go back to where it began."""
    began: int = 0


def new_loader(
    context: RankContext,
    task: int,
    tasks: Sequence[int],
    *,
    stream: TaskStream,
    known: Samples | TrainingShard | None = None,
) -> TaskLoader:
    """This rank's loader of a task, at its first mini-batch; asks no other rank, so `largest` is its own.

    tasks: whose samples it is made of. known: these samples, (sample, ...), where they were read already, or
    as they lie ready.
    """
    experience = stream[task]
    group = None if experience is None else experience.group
    samples = stream.training_samples(tasks) if known is None else known
    shard = samples if isinstance(samples, TrainingShard) else _ready(context, samples, group)
    return TaskLoader(
        task=task,
        tasks=tasks,
        shard=shard,
        largest=len(shard),
        epochs=context.spec.training.epochs,
        batch=context.run_state.live_settings.sizes(context.groups.ranks).batch,
        key=(context.spec.seed, context.groups.rank),
        least_steps=context.spec.training.least_steps,
        began=context.run_state.step,
        group=group,
    )


def _ready(context: RankContext, samples: Samples, group: str | None) -> TrainingShard:
    if context.room is not None:
        context.room.begin()
    return TrainingShard(samples, device=context.spec.device, group=group, room=context.room)


def unfinished_task(
    context: RankContext,
    plain: Mapping[str, Any] | None,
    stream: TaskStream,
    *,
    under_way: TaskLoader | None = None,
) -> UnfinishedTask:
    """The task under way as a checkpoint says it; asks no other rank.

    plain: what `TaskLoader.to_plain` said; None: no task was under way. stream: the tasks in their order
    then. under_way: a loader of the same stream; if it has the same tasks, its samples are not read again.
    """
    if plain is None:
        return UnfinishedTask(None)
    if all(stream[int(task)] is not None for task in plain["tasks"]):
        return UnfinishedTask(_going_on(context, plain, stream, under_way=under_way))
    there = stream[int(plain["task"])] is not None
    loader = _from_its_beginning(context, plain, stream) if there else None
    return UnfinishedTask(loader, anew=True, began=int(plain["began"]))


def _going_on(
    context: RankContext, plain: Mapping[str, Any], stream: TaskStream, *, under_way: TaskLoader | None
) -> TaskLoader:
    rank, ranks = context.groups.rank, context.groups.ranks
    dealings = [(int(count), int(passed)) for count, passed in plain["dealings"]]
    tasks = [int(task) for task in plain["tasks"]]
    same = under_way is not None and list(under_way.tasks) == tasks
    known = under_way.shard if under_way is not None and same else None
    loader = new_loader(context, int(plain["task"]), tasks, stream=stream, known=known)
    loader.go_on(plain)
    if len(dealings) == 1 and dealings[0][0] == ranks:
        return loader
    if dealings[-1][0] != ranks:
        dealings.append((ranks, 0))
    left = _left(loader, stream, dealings[:-1])
    dealt = [stream.training_samples(tasks, of=(each, ranks)) for each in range(ranks)]
    loader.measure(max(len(samples[IDENTITY]) for samples in dealt))
    places = dealt_out(len(left[IDENTITY]), ranks=ranks)
    rest = {name: tensor[places[rank]] for name, tensor in left.items()}
    ready = _ready(context, rest, loader.group)
    loader.go_on_with(ready, longest=max(map(len, places)), dealings=dealings)
    return loader


def _from_its_beginning(context: RankContext, plain: Mapping[str, Any], stream: TaskStream) -> TaskLoader:
    """That loader at its first mini-batch, without those of its tasks that are gone."""
    tasks = [int(task) for task in plain["tasks"] if stream[int(task)] is not None]
    loader = new_loader(context, int(plain["task"]), tasks, stream=stream)
    loader.spend(float(plain["seconds"]))
    return loader


def _left(loader: TaskLoader, stream: TaskStream, dealings: Sequence[Dealing]) -> Samples:
    """What is left of an epoch that was dealt out like this, in the order in which it was left."""
    ranks, passed = dealings[0]
    parts = []
    for rank in range(ranks):
        samples = stream.training_samples(loader.tasks, of=(rank, ranks))
        begun = replace(
            loader, shard=TrainingShard(samples), key=(loader.key[0], rank), place=passed, _order=None
        )
        chosen = begun.left()
        parts.append({name: tensor[chosen] for name, tensor in samples.items()})
    left = joined(parts)
    for ranks, passed in dealings[1:]:
        rows = [part[first_left(len(part), passed) :] for part in dealt_out(len(left[IDENTITY]), ranks=ranks)]
        left = {name: tensor[torch.cat(rows)] for name, tensor in left.items()}
    return left
