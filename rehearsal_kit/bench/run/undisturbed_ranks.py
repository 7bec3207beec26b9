"""A run that trains while files arrive, previews are asked for and checkpoints are written, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.bench.run.beside_training import Asking, Beside, OtherProgram
from rehearsal_kit.bench.run.boundaries import Boundaries
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.tensor_tasks import TensorTask, write_task
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.previewer import ASKED_S, Previewer
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import Arrived, Stop, TakeCheckpoint, Wish
from rehearsal_kit.record.records import (
    CheckpointFailed,
    CheckpointKept,
    NotKept,
    Record,
    TaskArrived,
    TaskSetAside,
)
from rehearsal_kit.record.run_folder import RunFolder

NOTHING, ARRIVAL, PROGRAM = "nothing", "an arrival", "another program"
PREVIEWS, CHECKPOINT = "previews", "a checkpoint"
ROUND = (NOTHING, ARRIVAL, NOTHING, PROGRAM, NOTHING, PREVIEWS, NOTHING, CHECKPOINT)
BATCH, REPRESENTATIVES, CANDIDATES = 16, 24, 8
HELD_OUT = 8
LONGEST_S = 120.0
"""That one disturbance may take: then something is wrong with it."""
FIELDS = ("diffraction", "amplitude", "phase")


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What is measured; the same on all ranks."""

    folder: Path
    side: int
    """Side length of the images, in pixels."""
    stored: int
    """Samples in the buffer of each rank; all are there before anything is measured."""
    arriving_bytes: int
    """Bytes of a file that arrives."""
    steps: int
    """Steps of a block without disturbance, and the fewest of one with."""
    rounds: int
    """Number of rounds of blocks, each disturbance once in a round."""

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / "run"

    @property
    def task(self) -> Path:
        """The file of the task that is trained."""
        return self.folder / "task.h5"

    def arriving(self, number: int) -> Path:
        """A file that arrives while it is."""
        return self.folder / f"arriving-{number}.h5"

    def unread(self, number: int) -> Path:
        """A file as long that nobody has read before another program does."""
        return self.folder / f"unread-{number}"


@dataclass(frozen=True)
class Block:
    """Consecutive steps of all ranks."""

    disturbance: str
    steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds


@dataclass(frozen=True)
class Measurement:
    """What rank 0 has seen."""

    blocks: tuple[Block, ...]
    """All blocks in order; the last is without disturbance."""
    shard_bytes: int
    """Bytes of the largest checkpoint."""


def lay_out(turns: Turns, ranks: int) -> None:
    """Write the files of the run; those that arrive are as long as they say, but take no room on disk."""
    RunFolder(turns.run).create()
    write_task(_task("trained", ranks * turns.stored, turns.side), turns.task)
    for number in range(turns.rounds):
        write_task(_task(f"arriving {number}", HELD_OUT, turns.side), turns.arriving(number))
        with turns.arriving(number).open("r+b") as file:
            file.truncate(max(turns.arriving_bytes, turns.arriving(number).stat().st_size))
        with turns.unread(number).open("wb") as file:
            file.truncate(turns.arriving_bytes)


def measure_undisturbed(groups: ProcessGroups, turns: Turns) -> Measurement:
    """Train with disturbances now and then; on every rank."""
    mailbox = _Mailbox(turns)
    spec = RunSpec(
        run=RunFolder(turns.run),
        seed=0,
        network=Light(),
        strategy=ER(),
        preparation=Preparation(size=turns.side),
        training=Training(batch=BATCH, epochs=10**6, scaling="none"),
        rehearsal=Rehearsal(
            representatives=REPRESENTATIVES, candidates=CANDIDATES, capacity=turns.stored * groups.ranks
        ),
        recovery=Recovery(checkpoint_s=1e9, keep_last=1, keep_best=0),
    )
    rank = Rank(spec, groups, mailbox=mailbox, publish=mailbox.hear)
    mailbox.previewer = rank.previewer
    try:
        rank.run()
    finally:
        mailbox.close()
    return Measurement(tuple(mailbox.blocks), mailbox.shard_bytes)


class Light(torch.nn.Module):
    """Amplitude and phase by two convolutions: buffers of any size are full within seconds."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the same on all ranks
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(1, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 5, padding=2)
            )

    def forward(self, diffraction: torch.Tensor) -> dict[str, torch.Tensor]:
        """(sample, 1, row, column), all three."""
        amplitude, phase = self.layers(diffraction).split(1, dim=1)
        return {"amplitude": amplitude, "phase": phase}


class _Mailbox(Boundaries):
    """Brings about what disturbs, in turns, and takes down how fast rank 0 trains meanwhile."""

    def __init__(self, turns: Turns) -> None:
        super().__init__(turns.task, name="trained")
        self.previewer: Previewer | None = None
        self.blocks: list[Block] = []
        self.shard_bytes = 0
        self._turns = turns
        self._left = [*ROUND * turns.rounds, NOTHING]
        self._warm_up = -(-turns.stored // BATCH) + turns.steps
        """Steps until the buffers are full and everything is in its place."""
        self._present = ""
        """What disturbs now; empty between blocks."""
        self._over = False
        self._steps, self._began, self._free = 0, 0.0, 0.0
        self._beside: Beside | None = None

    def close(self) -> None:
        """Nothing disturbs any more."""
        if self._beside is not None:
            self._beside.end()

    def hear(self, record: Record, line: int | None) -> None:
        """What rank 0 tells: a disturbance may be over."""
        if isinstance(record, CheckpointKept):
            self.shard_bytes = max(self.shard_bytes, record.bytes)
        # A block beside something that did not happen would be taken for one that it does not slow down.
        if isinstance(record, (CheckpointFailed, TaskSetAside, NotKept)) and record.reason:
            raise RehearsalKitError(f"what was to disturb has failed: {record.reason}")
        super().hear(record, line)
        wanted = {ARRIVAL: TaskArrived, CHECKPOINT: CheckpointKept}.get(self._present)
        self._over |= wanted is not None and isinstance(record, wanted)

    def _at_boundary(self, now: float) -> None:
        if self._warm_up:
            self._warm_up -= 1
            return
        if self._present:
            self._steps += 1
            if self._steps < self._turns.steps or not self._happened():
                if now - self._began > LONGEST_S:
                    raise RehearsalKitError(f"{LONGEST_S:.0f} s were not enough for {self._present}.")
                return
            self._end(now)
        if now >= self._free:
            self._begin(now)

    def _happened(self) -> bool:
        if self._beside is not None:
            return self._beside.came
        return self._over or self._present == NOTHING

    def _end(self, now: float) -> None:
        self.blocks.append(Block(self._present, self._steps, now - self._began))
        if self._beside is not None:
            self._beside.end()
            self._beside = None
        if self._present == PREVIEWS:
            self._free = now + ASKED_S  # until then they go on
        self._present = ""

    def _begin(self, now: float) -> None:
        if not self._left:
            self._wishes, self._trains = [Wish(0, Stop())], False
            return
        self._present, self._over, self._steps, self._began = self._left.pop(0), False, 0, now
        number = sum(block.disturbance == self._present for block in self.blocks)
        if self._present == ARRIVAL:
            path = str(self._turns.arriving(number))
            self._wishes = [Wish(3 + number, Arrived(name=f"arriving {number}", path=path))]
        elif self._present == PROGRAM:
            self._beside = OtherProgram(self._turns.unread(number))
        elif self._present == CHECKPOINT:
            self._wishes = [Wish(0, TakeCheckpoint())]
        elif self._present == PREVIEWS and self.previewer is not None:
            self._beside = Asking(self.previewer)


def _task(name: str, training: int, side: int) -> TensorTask:
    random = torch.Generator().manual_seed(training)
    training_samples, watched, test = (
        {field: torch.rand(count, 1, side, side, generator=random) for field in FIELDS}
        for count in (training, HELD_OUT, HELD_OUT)
    )
    return TensorTask(name=name, inputs=FIELDS[0], training=training_samples, watched=watched, test=test)
