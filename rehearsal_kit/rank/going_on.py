"""What a run goes on with, read from its folder before any rank is started: whether it can be steered so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rehearsal_kit.base.errors import CheckpointError, SettingsError, SnapshotError
from rehearsal_kit.base.plain_values import with_tuples
from rehearsal_kit.base.settings import SETTINGS
from rehearsal_kit.buffer.memory_limit import require_fitting, share_of
from rehearsal_kit.buffer.policies import new_policy
from rehearsal_kit.buffer.row_layout import WORD, RowLayout
from rehearsal_kit.buffer.shards import ROWS, STORE, layout_of, open_shard
from rehearsal_kit.buffer.store import require_identity
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.rank.checkpoint_files import FORMAT, Checkpoint, find_checkpoints
from rehearsal_kit.rank.checkpoint_takeup import arrivals_to_train
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.rank.run_spec import RunSettings, stored_identity
from rehearsal_kit.rank.run_state import RunState
from rehearsal_kit.record.commands import Arrived, Steer
from rehearsal_kit.record.effects import effects_of, unheard
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.replay_queue import Entry

_ARRIVED = tuple(field.name for field in fields(Arrived))


@dataclass(frozen=True, kw_only=True)
class KeptBuffer:
    """The buffer in a checkpoint, as far as its head says it."""

    layout: RowLayout
    capacity: int
    """Samples that it may hold, over all ranks."""
    rows: int
    """Samples that it holds."""

    @staticmethod
    def of(checkpoint: Checkpoint) -> KeptBuffer | None:
        """None where there was none yet. SnapshotError where its files cannot be read."""
        shards = [open_shard(checkpoint.folder / name) for name in checkpoint.shards()]
        if not shards:
            return None
        rows = sum(shard.shape(f"{STORE}/{ROWS}")[0] for shard in shards)
        return KeptBuffer(layout=layout_of(shards[0]), capacity=int(shards[0].about["capacity"]), rows=rows)


@dataclass(frozen=True, kw_only=True)
class GoingOn:
    """What is in force where ranks take up their work again, once what is recorded has taken effect again."""

    live_settings: LiveSettings
    signature: Signature | None = None
    """What the samples of the run are; None where no checkpoint says it."""
    buffer: KeptBuffer | None = None
    tasks: tuple[Arrived, ...] = ()
    """Tasks of the run, as far as they are known: first those that are to be trained."""

    @staticmethod
    def of(spec: RunSettings) -> GoingOn:
        """What the newest checkpoint that can be read says, with what the ledgers have after it.

        So far as nobody has heard it, what was asked for counts as well. Of a run that was not begun, what it
        begins with. RunFolderError for a ledger that is damaged.
        """
        ledger = read_ledger(spec.run.effects)
        effects = effects_of(ledger)
        there = find_checkpoints(spec.run.checkpoints)
        number, now = 0, GoingOn(live_settings=LiveSettings.of(spec))
        for candidate in sorted(there.keys() & effects.numbers.keys(), reverse=True):
            try:
                number, now = candidate, _at(there[candidate], spec)
            except (CheckpointError, SnapshotError, SettingsError, OSError, KeyError, TypeError, ValueError):
                continue  # the ranks will say it, and take the one before, too
            break
        for entry in (*effects.after(number), *effects.outstanding, *unheard(spec.run, ledger)):
            if "refused" not in entry:
                with contextlib.suppress(CheckpointError, SnapshotError, SettingsError, OSError):
                    now = now._after(entry, spec, there)
        return now

    def steered(self, command: Steer) -> GoingOn:
        """What will be in force after a command; SettingsError, as of the ranks, if that cannot be."""
        steered = self.live_settings.steered(command)
        kept = None if self.buffer is None else self.buffer.layout
        steered.require_after(self.live_settings, signature=self.signature, layout=kept)
        if kept is not None:
            policy = new_policy(steered.rehearsal.policy, 0)
            require_identity(policy, kept, removal=steered.rehearsal.removal)
        return replace(self, live_settings=steered)

    def require_room(self, ranks: int, machines: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """SettingsError if buffers of this capacity could not be held by so many ranks on these machines.

        machines: of each, how many ranks are there and how many bytes can still be taken; called only where
        the buffers grow.
        """
        if self.buffer is None and not self.live_settings.needs_buffer:
            return
        row_bytes = WORD if self.buffer is None else self.buffer.layout.row_bytes  # no row is shorter
        share = share_of(self.live_settings.rehearsal.samples(row_bytes), 0, ranks)
        kept, rows = (0, 0) if self.buffer is None else (self.buffer.capacity, self.buffer.rows)
        if kept and share <= max(1, kept // ranks):
            return
        for here, available in machines().values():  # old and new rows exist side by side for a moment
            require_fitting(share * row_bytes * here, available - rows * row_bytes * here // ranks)

    def _after(self, entry: Entry, spec: RunSettings, there: Mapping[int, Checkpoint]) -> GoingOn:
        match entry["kind"]:
            case "Steer":
                command = Steer(**{name: entry.get(name) for name in SETTINGS})
                return replace(self, live_settings=self.live_settings.steered(command))
            case "RollBack" if entry["checkpoint"] in there:
                back = _at(there[entry["checkpoint"]], spec)
                return replace(back, tasks=(*back.tasks, *self.tasks))
            case "Arrived":
                return replace(self, tasks=(*self.tasks, _arrived(entry, spec)))
        return self


def _at(checkpoint: Checkpoint, spec: RunSettings) -> GoingOn:
    if checkpoint.format != FORMAT or checkpoint.run != stored_identity(spec.run):
        raise CheckpointError(f"{checkpoint.folder} is not of this run, or of another version.")
    state = checkpoint.state()
    known, to_train = state["signature"], arrivals_to_train(state)
    stream = [Arrived(**with_tuples(plain)) for plain, aside in state["stream"] if not aside]
    tasks = [*to_train, *(arrived for arrived in stream if arrived not in to_train)]
    return GoingOn(
        live_settings=RunState.from_plain(state["course"], LiveSettings.of(spec)).live_settings,
        signature=None if known is None else Signature.from_plain(known),
        buffer=KeptBuffer.of(checkpoint),
        tasks=tuple(replace(each, path=spec.run.find(each.path)) for each in tasks),
    )


def _arrived(entry: Mapping[str, Any], spec: RunSettings) -> Arrived:
    arrived = Arrived(**with_tuples({name: entry[name] for name in _ARRIVED if name in entry}))
    return replace(arrived, path=spec.run.find(arrived.path))
