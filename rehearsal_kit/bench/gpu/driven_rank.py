"""A rank of a session that goes one step further whenever it is asked, so that several train in turns."""

from __future__ import annotations

import time
from pathlib import Path

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.row_placement import ON_DEVICE
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import Arrived, Command, FinishStream, Steer, Stop, TakeCheckpoint, Wish
from rehearsal_kit.record.records import (
    CheckpointFailed,
    CheckpointKept,
    NotKept,
    Record,
    StateChanged,
    Steps,
    TaskSetAside,
    Unevaluated,
)

LONGEST_S = 120.0
"""Seconds until the first step at most, or until a checkpoint is on disk: then something is wrong."""


class DrivenRank:
    """The loop of a rank as a session has it, but for Dask: commands, shard, mini-batch, step, records.

    All ranks make theirs, and call its methods, at the same points. task: the file of the only task. The
    first step is taken by then.
    """

    def __init__(self, spec: RunSpec, groups: ProcessGroups, *, task: Path) -> None:
        self.kept: list[CheckpointKept] = []
        """Checkpoints that are on disk; known on rank 0."""
        self._groups = groups
        self._learning_rate = spec.training.learning_rate
        self._wanted = 0
        """Checkpoints that were asked for."""
        self._steps: list[Steps] = []
        self._mailbox = _Wishes(Arrived(name=task.stem, path=str(task)), FinishStream())
        self._rank = Rank(spec, groups, mailbox=self._mailbox, publish=self._hear)
        self._rounds = self._rank.rounds()
        deadline = time.monotonic() + LONGEST_S
        while self._rank.step == 0:
            self._take_round()
            if time.monotonic() > deadline:
                raise RehearsalKitError(f"the session has taken no step in {LONGEST_S:.0f} s.")

    @property
    def taken(self) -> int:
        """Steps so far."""
        return self._rank.step

    @property
    def is_buffer_there(self) -> bool:
        """Whether the rows of the buffer of this rank lie on the device."""
        places = self._rank.buffer_places
        return bool(places) and places[self._groups.rank] == ON_DEVICE

    def ask(self, command: Command) -> None:
        """Have this take effect before the next step."""
        self._wanted += isinstance(command, TakeCheckpoint)
        self._mailbox.wish(command)

    def step(self, count: int = 1) -> None:
        """Take so many steps."""
        until = self._rank.step + count
        for _ in range(count):
            self._take_round()
        if self._rank.step != until:
            raise RehearsalKitError(f"the session is at step {self._rank.step} instead of {until}: it waits.")

    def settle(self) -> None:
        """Take steps until all checkpoints that were asked for are on disk, and nothing is being written."""
        deadline = time.monotonic() + LONGEST_S
        while 0 not in self._groups.where(len(self.kept) == self._wanted):
            self.step()
            if time.monotonic() > deadline:
                raise RehearsalKitError(f"a checkpoint is not on disk after {LONGEST_S:.0f} s.")

    def told(self, since: int) -> list[Steps]:
        """What rank 0 has told of the steps from this one on; of all of them after `end`.

        In records that hold none before it: after `apart` there is one that begins there.
        """
        return [steps for steps in self._steps if steps.first >= since]

    def apart(self) -> None:
        """Have the steps from the next one on be told in records of their own."""
        # Settings that are steered to what they are change nothing, but records are of one setting each.
        self.ask(Steer(learning_rate=self._learning_rate))

    def end(self) -> None:
        """Stop, as a person would."""
        self.ask(Stop())
        for _ in self._rounds:
            pass

    def _take_round(self) -> None:
        if next(self._rounds, self) is self:
            raise RehearsalKitError(f"the session has ended at step {self._rank.step}.")

    def _hear(self, record: Record, line: int | None) -> None:
        # What did not come about would be taken for something that costs nothing.
        failed = isinstance(record, (CheckpointFailed, TaskSetAside, NotKept, Unevaluated))
        if failed or isinstance(record, StateChanged):
            reason = getattr(record, "reason", "")
            if reason:
                raise RehearsalKitError(f"what was to be measured has failed: {reason}")
        if isinstance(record, CheckpointKept):
            self.kept.append(record)
        if isinstance(record, Steps):
            self._steps.append(record)


class _Wishes:
    """A mailbox that holds what was wished for since it was looked into."""

    def __init__(self, *first: Command) -> None:
        self._wishes = [Wish(number, command) for number, command in enumerate(first, 1)]

    def wish(self, command: Command) -> None:
        """One more, which is counted as the ranks' own."""
        self._wishes.append(Wish(0, command))

    def empty(self) -> bool:
        """Whether nothing lies there now."""
        return not self._wishes

    def get(self) -> str:
        """Take out the next."""
        return self._wishes.pop(0).to_json()
