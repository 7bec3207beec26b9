"""Runs that something happens to, and what has to hold of every one of them afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ranks import CODE
from safetensors.torch import load_file

from rehearsal_kit.base.processes import family, is_alive
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.cluster.cluster import Cluster, reach, start_cluster
from rehearsal_kit.data.tensor_tasks import split_instances
from rehearsal_kit.jobs.launch import connect_job
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.record.branches import decided_at
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.rank_records import Ended, GenerationBegan, GenerationEnded, Joined
from rehearsal_kit.record.records import (
    Applied,
    CheckpointKept,
    CheckpointTaken,
    Restored,
    Steps,
    TaskArrived,
    TaskEnded,
)
from rehearsal_kit.record.replay_queue import AGAIN
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.session import Session

SLOW = float(os.environ.get("REHEARSAL_KIT_SLOW", max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))))
"""Deadlines are multiplied by this on slow machines, and on those that have other things to do."""
DEADLINE_S = 60 * SLOW
RECOVERY_S = 10 * SLOW
"""From a kill to the first new step."""
SIZES = (160, 160, 160)
TASKS = len(SIZES)
CAPACITY = 64
RECOVERY = Recovery(checkpoint_s=0.3, stall_s=5, wait_s=60)
TRAINING = Training(batch=4, epochs=2, scaling="none", bucket_mib=0.002)  # several, of its small network
NAP_S = 0.01
"""Of every training forward pass: runs that take as long as faults need, without work for a processor."""
REHEARSAL = Rehearsal(representatives=4, distillation=4, candidates=4, capacity=CAPACITY)
ASSERT = (
    "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in https://docs.nvidia.com/cuda/"
    "cuda-runtime-api/group__CUDART__TYPES.html for more information.\nCUDA kernel errors might be "
    "asynchronously reported at some other API call, so the stacktrace below might be incorrect.\nFor "
    "debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)
"""What torch says of a kernel that reads outside of its memory."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a rank does to itself at one of its forward passes; once per marker, unless `again`."""

    kind: str
    """raise, fail (as code of torch does), break (the context of the GPU), sleep, kill, freeze, exit, crash
    or hold (the interpreter)."""
    marker: str
    """A file that says that it has happened."""
    rank: int = 1
    forward: int = 50
    """Training forward passes of its process before; -1: before it meets the others, whatever its rank."""
    seconds: float = 0.0
    again: bool = False
    text: str = ""
    """What the error says of one that fails."""

    def happen(self) -> None:  # noqa: C901 - one case for each kind
        """Do it, unless it was done before."""
        try:
            os.close(os.open(self.marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if not self.again:
                return
        match self.kind:
            case "raise":
                raise PlannedError(f"planned at forward pass {self.forward} of rank {self.rank}")
            case "fail":
                raise RuntimeError(self.text)
            case "break":
                beyond = torch.tensor([10**6], device="cuda")
                torch.zeros(4, device="cuda")[beyond].sum().item()
            case "sleep":
                time.sleep(self.seconds)
            case "kill":
                time.sleep(self.seconds)  # by then the others may wait for this one
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "exit":
                os._exit(0)
            case "crash":
                ctypes.string_at(0)
            case "hold":
                ctypes.PyDLL(None).usleep(int(self.seconds * 1e6))  # a PyDLL does not let the others in


class PlannedError(BaseException):
    """Ends a rank: an error of a network would only set its task aside."""


class Frail(torch.nn.Module):
    """A network that carries out faults; without any it is the same network."""

    def __init__(self, *faults: Fault, nap_s: float = 0.0) -> None:
        super().__init__()
        self.faults, self.nap_s, self.forwards = faults, nap_s, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 4)
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if threading.current_thread().name.startswith("train-g"):  # not where a kernel copies it
            for fault in self.faults:
                if fault.forward < 0:
                    fault.happen()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.forwards += 1
            time.sleep(self.nap_s)
            for fault in self.faults:
                if rank_here() == fault.rank and 0 <= fault.forward <= self.forwards:
                    fault.happen()
        return {"label": self.layers(image)}


def rank_here() -> int | None:
    """Number of the rank that trains in this thread; None where none does, as in a trial."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0 if threading.current_thread().name.startswith("train-g") else None


def tasks(sizes: Sequence[int]) -> list[Any]:
    """Vectors of four classes, one task of each size."""
    random = torch.Generator().manual_seed(5)

    def labelled(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 4
        return torch.randn(count, 8, generator=random) + torch.eye(4).repeat(1, 2)[labels], labels

    return [
        task
        for size in sizes
        for task in split_instances(*labelled(size), tasks=1, test=labelled(40), seed=1)
    ]


def session_on(
    cluster: Cluster,
    run: Path,
    *faults: Fault,
    nap_s: float = NAP_S,
    sizes: Sequence[int] = SIZES,
    tasks_of: Callable[[Sequence[int]], list[Any]] | None = None,
    open_end: bool = False,
    **changes: Any,
) -> Session:
    """A run of three tasks that was not started yet; tasks_of: makes them, where they are not `tasks`.

    open_end: whether more of them may come.
    """
    network = Frail(*faults, nap_s=nap_s)
    values = {
        "network": network,
        "training": TRAINING,
        "rehearsal": REHEARSAL,
        "recovery": RECOVERY,
        "strategy": DERpp(),
    }
    session = Session(cluster, run=run, seed=3, **{**values, **changes})
    for task in (tasks_of or tasks)(sizes):
        session.submit(task)
    if not open_end:
        session.finish_stream()
    return session


@contextlib.contextmanager
def shared_cluster(
    workers: int = 2, *, check: bool = True, kind: str = "cpu", share_gpus: bool = False
) -> Iterator[Cluster]:
    """A cluster whose workers can import the network of these tests.

    check: whether all workers have to be there at the end. kind, share_gpus: as for `start_cluster`.
    """
    with start_cluster(
        kind, workers=workers, share_gpus=share_gpus, idle_timeout_s=300, code=CODE
    ) as cluster:
        yield cluster
        wait_for(lambda: not check or len(cluster.client.scheduler_info(n_workers=-1)["workers"]) == workers)


def wait_for(holds: Callable[[], Any], *, timeout_s: float = DEADLINE_S, but: str = "it did not come") -> Any:
    """What `holds` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, but
        time.sleep(0.005)
    return value


def until(session: Session, holds: Callable[[Timeline], Any]) -> Any:
    """Wait until something holds for the timeline of a run that goes on."""

    return session.until(lambda session: holds(session.timeline), timeout=DEADLINE_S)


def answered(session: Session, number: int) -> list[Applied]:
    """What all ranks have said of a wish, once they have; as many as there were then."""
    return list(
        until(
            session,
            lambda _: (said := session.acknowledged(number)) and len(said) == said[0].ranks and said,
        )
    )


def step_told(session: Session) -> int:
    """The newest step that was told; -1 before the first."""
    last = session.timeline.last(Steps)
    return -1 if last is None else last.first + len(last.losses) - 1


def process_of(session: Session, rank: int) -> int:
    """Of the rank of the newest generation, as soon as it has said so."""

    def joined(timeline: Timeline) -> int:
        began = timeline.last(GenerationBegan)
        return next(
            (
                each.process
                for each in timeline.records(Joined)
                if began is not None and (each.rank, each.generation) == (rank, began.generation)
            ),
            0,
        )

    return int(until(session, joined))


# What has to hold ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What an uninterrupted run has come to."""

    weights: dict[str, torch.Tensor]
    steps: int
    losses: list[float]
    ended: list[tuple[int, int, str]]
    """Task, step and fingerprint."""
    seconds: float
    """From the first step to the last."""
    kept: list[CheckpointKept] = field(default_factory=list)

    @staticmethod
    def of(cluster: Cluster, folder: Path, **changes: Any) -> Expected:
        """Let one run, and look at it as at all others."""
        with session_on(cluster, folder, **changes) as session:
            session.start()
            assert session.wait(DEADLINE_S) == "finished"
        steps, losses = session.timeline.losses()
        ended = [(t.task, t.step, t.weights) for t in session.timeline.records(TaskEnded)]
        records = session.timeline.records(Steps)
        weights = load_file(RunFolder(folder).weights)
        found = Expected(weights, len(steps), losses, ended, records[-1].time - records[0].time)
        require_whole(session, found, restarts=0)
        sizes = changes.get("sizes", SIZES)
        assert len(steps) == sum(sizes) // (session.ranks * TRAINING.batch) * TRAINING.epochs
        return found


def require_whole(session: Session, expected: Expected | None, *, restarts: int, reason: str = "") -> None:
    """All oracles: nothing lost, nothing twice, the same weights, one clear message, nothing left behind.

    expected: None where the run differs by declaration from the one that was not interrupted.
    """
    assert session.state == "finished", session.error
    assert not session.error
    timeline, folder = session.timeline, session.run
    ends = timeline.records(GenerationEnded)
    assert len(ends) == restarts, ends
    assert all(re.search(reason, end.reason) for end in ends), ends
    last = timeline.records(GenerationBegan)[-1]
    of_last = {}

    def all_ended() -> bool:  # they are told beside the record that the run is over
        of_last.update({e.rank: e for e in timeline.records(Ended) if e.generation == last.generation})
        return len(of_last) == len(last.workers)

    wait_for(all_ended, timeout_s=5)
    assert {end.outcome for end in of_last.values()} == {"finished"}
    assert len({end.weights for end in of_last.values()}) == 1
    require_whole_folder(folder, expected)
    steps, losses = timeline.losses()
    assert steps == list(range(len(steps))), [
        (at, steps[at : at + 3]) for at in range(len(steps)) if steps[at] != at
    ][:3]
    on_disk = Timeline.load(folder.timeline)
    assert on_disk.losses() == (steps, losses)
    if restarts:  # every failure is survived in a generation of its own
        assert len(timeline.records(Restored)) >= 1


def require_whole_folder(folder: RunFolder, expected: Expected | None) -> None:
    """The same of what lies on disk, for runs that nobody has watched."""
    timeline = Timeline.load(folder.timeline)
    ended = [(t.task, t.step, t.weights) for t in timeline.records(TaskEnded)]
    assert [task for task, _, _ in ended] == list(range(TASKS))
    assert len(timeline.records(TaskArrived)) == TASKS
    if expected is not None:
        weights = load_file(folder.weights)
        assert weights.keys() == expected.weights.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.weights.items())
        assert timeline.losses() == (list(range(expected.steps)), expected.losses)
        assert ended == expected.ended
    require_ledgers(folder)
    left = [*folder.path.glob("rendezvous*"), *folder.path.rglob("*.partial")]
    assert not left, f"left behind: {left}"


def require_ledgers(folder: RunFolder) -> None:
    """Effects in the order of their positions; every wish answered once."""
    effects, wishes = read_ledger(folder.effects), read_ledger(folder.wishes)
    at = [(entry["branch"], entry["step"]) for entry in effects]
    assert at == sorted(at)
    # What was decided again on another number of ranks is recorded again as well.
    numbers = [entry["number"] for entry in effects if entry["number"] and AGAIN not in entry]
    assert numbers == [entry["number"] for entry in wishes]
    assert numbers == list(range(1, 1 + len(numbers)))
    torn = [path for path in (folder.effects, folder.timeline, folder.generations) if not whole(path)]
    assert not torn


def whole(path: Path) -> bool:
    """Whether every line of a ledger is JSON."""
    lines = path.read_bytes().split(b"\n")
    return lines[-1] == b"" and all(json.loads(line) for line in lines[:-1])


# Kills --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survived:
    """A kill, and how the run came back from it."""

    rank: int
    step: int
    """The last one that was told before."""
    recovery_s: float
    """From the kill to the first record of new steps."""
    repeated: int
    """Steps between the checkpoint and the last step that was told."""
    age_s: float
    """Of the checkpoint when the rank was killed."""


def kill(session: Session, rank: int, number: int = signal.SIGKILL) -> Survived:
    """Kill the process of a rank, and wait until the run goes on."""
    process, generations = process_of(session, rank), len(session.timeline.records(GenerationEnded))
    restored = len(session.timeline.records(Restored))
    kept = session.timeline.last(CheckpointKept)
    os.kill(process, number)
    killed = time.time()
    until(session, lambda timeline: len(timeline.records(GenerationEnded)) > generations)
    until(session, lambda timeline: len(timeline.records(Restored)) > restored)
    told = session.timeline.records()
    back = next(at for at, r in enumerate(told) if isinstance(r, Restored) and r.time > killed)
    before = [record for record in told[:back] if isinstance(record, Steps)]
    step = before[-1].first + len(before[-1].losses) - 1 if before else -1
    again = until(
        session,
        lambda timeline: next((s for s in timeline.records(Steps) if s.time > told[back].time), None),
    )
    checkpoint = told[back].checkpoint
    assert kept is None or checkpoint >= kept.checkpoint
    taken = [t.time for t in session.timeline.records(CheckpointTaken) if t.checkpoint == checkpoint]
    began = session.timeline.records(Joined)[0].time
    age_s = killed - (taken[0] if taken else began)
    since = itertools.dropwhile(lambda record: record != told[back], session.timeline.records())
    decided = [at[1] for record in since if (at := decided_at(record))]
    assert again.first == min([step + 1, *decided[:1]])  # told anew from where something new was decided
    if before and before[-1].stored == CAPACITY and step - told[back].step < step // 2:
        assert again.stored == CAPACITY  # the buffers are back
    return Survived(rank, step, again.time - killed, step + 1 - told[back].step, age_s)


def summary(values: list[float]) -> str:
    """Of measurements, to be printed."""
    ordered = sorted(values)
    return f"min {ordered[0]:.2f}, median {ordered[len(ordered) // 2]:.2f}, max {ordered[-1]:.2f}"


# Kernels ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kernel(work: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A kernel of its own, running a function of this module with these arguments; killed in the end."""
    code = f"import faultkit; faultkit.{work}(*{list(arguments)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, CODE))},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def train_on(place: str, run: str) -> None:
    """What a notebook would run: start on a cluster that is there, and wait."""
    session = session_on(reach(json.loads(place)), Path(run))
    session.start()
    until(session, lambda timeline: timeline.last(Steps))
    print("training", flush=True)
    session.wait()


def train_on_own_cluster(run: str, idle_timeout_s: str) -> None:
    """The same, with a cluster of its own that nobody closes."""
    cluster = start_cluster("cpu", workers=2, idle_timeout_s=float(idle_timeout_s))
    print(json.dumps([process.pid for process in cluster.processes()[1:]]), flush=True)
    train_on(json.dumps(cluster.place), run)


def train_on_job(number: str, run: str) -> None:
    """Start on the cluster of a batch job, and pause."""
    session = session_on(connect_job(number), Path(run), nap_s=5 * NAP_S)
    session.start()
    until(session, lambda timeline: timeline.last(Steps))
    print("training", flush=True)
    answered(session, session.pause())
    print("paused", flush=True)
    session.wait()


def gaps(folder: RunFolder, since: float) -> list[float]:
    """Seconds between records of steps that were told after a moment."""
    times = [s.time for s in Timeline.load(folder.timeline).records(Steps) if s.time >= since]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def gone(process: int) -> bool:
    """Whether there is no such process any more, or nothing but its exit status."""
    return not any(is_alive(found) for found in family(process)[:1])
