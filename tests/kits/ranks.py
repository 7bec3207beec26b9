"""Real ranks in real processes, without Dask: for tests of what happens between ranks."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rehearsal_kit.base.process_groups import Meeting, ProcessGroups, meet
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import Command, Wish
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline

DEADLINE_S = 120
CODE = tuple(
    sorted({p.parent for p in Path(__file__).parents[1].rglob("*.py") if "fake_gpus" not in p.parts})
)
"""The folders of all tests and kits, from which workers import what is defined there."""
PROCESSES = multiprocessing.get_context("forkserver")
"""Its server imports torch once, and every rank begins as a copy of it: not seconds after the others."""
PROCESSES.set_forkserver_preload(
    ["rehearsal_kit.buffer.snapshots", "pytest", "scipy.stats", "rehearsal_kit.rank.rank_imports"]
)


def on_ranks(
    ranks: int,
    folder: Path,
    work: Callable[..., Any],
    *arguments: Any,
    dying: int = 0,
    timeout_s: float = 60.0,
) -> list[Any]:
    """`work(groups, *arguments)` on every rank, each a process of its own; results in order of rank.

    dying: how many of the last ranks will not live to answer.
    """
    results = PROCESSES.Queue()
    rendezvous = folder / "rendezvous"
    processes = [
        PROCESSES.Process(
            target=_one,
            args=(
                Meeting(rendezvous=rendezvous, nonce="test", rank=rank, ranks=ranks, timeout_s=timeout_s),
                results,
                work,
                arguments,
            ),
        )
        for rank in range(ranks)
    ]
    answers = dict(answers_of(processes, results, dying=dying))
    for rank, (_, error) in sorted(answers.items()):
        assert not error, f"rank {rank}:\n{error}"
    return [answers[rank][0] for rank in range(ranks - dying)]


def answers_of(processes: list[Any], results: Any, *, dying: int = 0) -> list[Any]:
    """What processes put into a queue, one answer each; they are started here, and none of them is left.

    dying: how many of the last ones will not live to answer.
    """
    for process in processes:
        process.start()
    try:
        return [results.get(timeout=DEADLINE_S) for _ in processes[dying:]]
    finally:
        for number, process in enumerate(processes):
            if number < len(processes) - dying:  # nobody needs to wait for one that hangs
                process.join(10)
            process.kill()
            process.join()
            process.close()
        results.close()
        results.join_thread()


class RankPool:
    """Ranks that have met and wait for work: many tests share what it costs to start them."""

    def __init__(self, ranks: int, folder: Path) -> None:
        self.ranks = ranks
        self._results = PROCESSES.Queue()
        self._work = [PROCESSES.SimpleQueue() for _ in range(ranks)]
        self._processes = [
            PROCESSES.Process(
                target=_many, args=(rank, ranks, folder / f"pool-{ranks}", self._work[rank], self._results)
            )
            for rank in range(ranks)
        ]
        for process in self._processes:
            process.start()

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`work(groups, *arguments)` on every rank; results in order of rank."""
        for work_queue in self._work:
            work_queue.put((work, arguments))
        answers = dict(self._results.get(timeout=DEADLINE_S) for _ in range(self.ranks))
        for rank, (_, error) in sorted(answers.items()):
            assert not error, f"rank {rank}:\n{error}"
        return [answers[rank][0] for rank in range(self.ranks)]

    def close(self) -> None:
        for work_queue in self._work:
            work_queue.put(None)
        for process in self._processes:
            process.join(10)
            process.kill()
            process.join()
            process.close()
        for each in (*self._work, self._results):
            each.close()
        self._results.join_thread()


def _many(rank: int, ranks: int, rendezvous: Path, work: Any, results: Any) -> None:
    torch.set_num_threads(1)
    meeting = Meeting(rendezvous=rendezvous, nonce="test", rank=rank, ranks=ranks, timeout_s=60)
    with meet(meeting) as groups:
        while (task := work.get()) is not None:
            value, error = None, ""
            try:
                value = task[0](groups, *task[1])
            except Exception:
                error = traceback.format_exc()
            results.put((rank, (value, error)))


def _one(meeting: Meeting, results: Any, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    value, error = None, ""
    try:
        with meet(meeting) as groups:
            value = work(groups, *arguments)
    except Exception:
        error = traceback.format_exc()
    results.put((meeting.rank, (value, error)))


class Tiny(torch.nn.Module):
    """Anybody's network: two convolutions, milliseconds a step."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(1, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 5, padding=2)
            )

    def forward(self, diffraction: torch.Tensor) -> dict[str, torch.Tensor]:
        amplitude, phase = self.layers(diffraction).split(1, dim=1)
        return {"amplitude": amplitude, "phase": phase}


def small_job(folder: Path, **changes: Any) -> RunSpec:
    """A run that takes seconds: 16 x 16 images, one epoch, a tiny network."""
    values = {
        "run": RunFolder(folder).create(),
        "seed": 3,
        "network": Tiny(seed=3),
        "strategy": ER(),
        "preparation": Preparation(size=16),
        "training": Training(batch=16, epochs=1, learning_rate=1e-3, scaling="none"),
        "rehearsal": Rehearsal(representatives=8, candidates=4, capacity=64),
    }
    return RunSpec(**{**values, **changes})


def alone(spec: RunSpec, *commands: Command) -> tuple[str, Timeline, Rank]:
    """Run one rank in this process, with all commands in its mailbox from the beginning."""
    mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number, command in enumerate(commands, 1):
        mailbox.put(Wish(number, command).to_json())
    timeline = Timeline()
    rank = Rank(
        spec, ProcessGroups(0, 1), mailbox=mailbox, publish=lambda record, line: timeline.append(record)
    )
    return rank.run(), timeline, rank
