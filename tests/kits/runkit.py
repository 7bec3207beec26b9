"""Whole runs of small tensors whose commands come at planned steps, and that can be cut off at any step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.cluster.protocol import RunOrder
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import Command, Wish, to_plain
from rehearsal_kit.record.ledger import Ledger, read_ledger
from rehearsal_kit.record.rank_records import LeaseTaken
from rehearsal_kit.record.records import Record, TaskArrived
from rehearsal_kit.record.records import to_plain as to_plain_record
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline

FEATURES = 6
TRAINING = Training(batch=8, epochs=3, learning_rate=0.02, warmup=0.2, schedule="cosine", scaling="none")
REHEARSAL = Rehearsal(representatives=6, distillation=4, candidates=3, capacity=40)


IDLE_LOOKS = 10
ALONE = ProcessGroups(0, 1)
KERNEL = "a kernel/1"
"""Whose wishes those of a plan are."""


class CutOffError(BaseException):
    """Stands for whatever ends a process at once: no handler of errors may catch it."""


class Net(torch.nn.Module):
    """Logits of vectors; with dropout, so that random numbers matter.

    cut: the training step, counted in this process, that is the last thing it does.
    """

    def __init__(self, classes: int = 16, *, cut: int | None = None) -> None:
        super().__init__()
        self.cut, self.steps = cut, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(FEATURES, 16),
                torch.nn.LayerNorm(16),
                torch.nn.Dropout(0.2),
                torch.nn.Tanh(),
                torch.nn.Linear(16, classes),
            )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.cut is not None and self.steps > self.cut:
            raise CutOffError
        return self.layers(image)


class Meanwhile(Net):
    """Lets something happen elsewhere while a training step is taken.

    step: counted from 0, in this process.
    """

    def __init__(self, step: int, happens: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.happens = step, happens

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.training and self.steps == self.step:
            self.happens()
        return super().forward(image)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Planned:
    """A mailbox in which the next command lies once the run has come to its step; may cut the run off.

    checkpoints: so many are whole on disk before it is.
    """

    def __init__(
        self, plan: list[tuple[int, Command]], *, cut: int | None, ledger: Path, checkpoints: int = 0
    ) -> None:
        self.rank: Rank | None = None
        self._plan = deque(
            (step, Wish(number, command, KERNEL)) for number, (step, command) in enumerate(plan, 1)
        )
        steered = Ledger(ledger.with_name("generations.jsonl"), durable=False)
        steered.append(to_plain_record(LeaseTaken(holder=KERNEL, time=0.0)))
        steered.close()
        self._written = max((entry["number"] for entry in read_ledger(ledger)), default=0)
        self._ledger = Ledger(ledger, durable=False)
        self._folder = RunFolder(ledger.parent)
        self._cut, self._checkpoints = cut, checkpoints
        self._seen, self._looks = 0, 0

    def empty(self) -> bool:
        assert self.rank is not None
        if self._cut is not None and self.rank.step >= self._cut:
            until(lambda: len(find_checkpoints(self._folder.checkpoints)) >= self._checkpoints)
            raise CutOffError
        if not self._plan or self._plan[0][0] <= self.rank.step:
            return not self._plan
        # Where nothing is left to train no step comes any more: then the next command is due all the same.
        self._looks = self._looks + 1 if self.rank.step == self._seen else 0
        self._seen = self.rank.step
        return self._looks < IDLE_LOOKS

    def get(self) -> str:
        wish = self._plan.popleft()[1]
        if wish.number > self._written:  # as the coordinator does, before it passes it on
            self._ledger.append({"time": 0.0, **to_plain(wish)})
        return wish.to_json()

    def close(self) -> None:
        self._ledger.close()


def job_in(folder: Path, **changes: Any) -> RunSpec:
    """A run whose steps take a millisecond or two, in a new folder."""
    RunFolder(folder).create()
    return job_in_existing(folder, **changes)


def job_in_existing(folder: Path, **changes: Any) -> RunSpec:
    """The same in a folder that is there."""
    values: dict[str, Any] = {
        "run": RunFolder(folder),
        "seed": 11,
        "network": Net(),
        "strategy": DERpp(),
        "preparation": Preparation(),
        "training": TRAINING,
        "rehearsal": REHEARSAL,
        "recovery": Recovery(checkpoint_s=1e9, keep_last=1000),
    }
    return RunSpec(**{**values, **changes})


def class_tasks(folder: Path, tasks: int = 5, each: int = 24) -> list[Command]:
    """Two classes of vectors in each task, written once."""
    folder.mkdir(exist_ok=True)
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(2 * tasks).repeat(each)
    centres = 2 * torch.randn(2 * tasks, FEATURES, generator=random)
    inputs = centres[labels] + torch.randn(len(labels), FEATURES, generator=random)
    test = (centres[labels][: 20 * tasks], labels[: 20 * tasks])
    made = split_classes(inputs, labels, classes_per_task=2, test=test)
    return [write_task(task, folder / f"{number}.h5") for number, task in enumerate(made)]


def carry_out(
    groups: ProcessGroups,
    spec: RunSpec,
    plan: list[tuple[int, Command]],
    *,
    cut: int | None = None,
    generation: int = 1,
    network: torch.nn.Module | None = None,
    checkpoints: int = 0,
    lease: str = "",
) -> tuple[str, Timeline]:
    """One rank of a run with these commands at these steps; raises CutOffError at step `cut`.

    checkpoints: so many are whole on disk before it is cut off.

    A later generation goes on from what the run folder holds.
    """
    planned = plan if groups.rank == 0 else []
    mailbox = Planned(planned, cut=cut, ledger=spec.run.wishes, checkpoints=checkpoints)
    timeline = Timeline()
    try:
        rank = Rank(
            replace(spec, network=network or Net()),
            groups,
            mailbox=mailbox,
            publish=lambda record, line: timeline.append(record),
            generation=generation,
            lease=lease,
        )
        mailbox.rank = rank
        return rank.run(), timeline
    finally:
        mailbox.close()


def arrived(task: int, name: str = "", branch: int = 0, *, training: int = 160) -> TaskArrived:
    """Rank 0 tells of a task; its name is "scan" and its number where it has none."""
    return TaskArrived(
        step=0, task=task, name=name or f"scan {task}", path="/p", training=training, watched=2, test=2,
        skipped=0, simulated=True, branch=branch,
    )  # fmt: skip


def written(run: RunFolder, records: Iterable[Record]) -> None:
    """Append these to the timeline of a run, as its rank 0 would."""
    ledger = Ledger(run.timeline, durable=False)
    for record in records:
        ledger.append(to_plain_record(record))
    ledger.close()


def weights_of(spec: RunSpec) -> dict[str, torch.Tensor]:
    return load_file(spec.run.weights)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def order_for(run: RunFolder, topic: str = "rehearsal-kit/1", **place: Any) -> dict[str, Any]:
    """What a kernel tells the coordinator of a run without a network: for orders that no rank carries out."""
    made = RunOrder(
        topic=topic,
        run=str(run.path),
        spec=b"",
        ranks=1,
        device="cpu",
        shared_gpus=False,
        place=place,
        recovery=Recovery(restarts=0, stall_s=60, wait_s=60),
    )
    return asdict(made)
