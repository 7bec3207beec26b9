"""What goes into one round of the distributed buffer, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.buffer.frozen_rows import release
from rehearsal_kit.buffer.offered import Offered
from rehearsal_kit.buffer.offered_there import OfferedThere, PackedThere
from rehearsal_kit.buffer.policies import PolicyState
from rehearsal_kit.buffer.row_layout import Accepted, Packed, RowLayout, Samples, Words
from rehearsal_kit.buffer.row_losses import NOTHING, Replayed
from rehearsal_kit.buffer.staging import Delivered, UnderWay, rows_of
from rehearsal_kit.buffer.store import Contents


@dataclass(frozen=True)
class Representatives:
    """What one rank drew for one step."""

    samples: dict[str, torch.Tensor]
    """Named tensors (drawn, ...), on the device of the buffer."""
    owners: NDArray[np.int64]
    """(drawn,): the rank that had stored each."""
    stored: int
    """Samples in the buffers of all ranks when they were drawn."""
    distillation: dict[str, torch.Tensor]
    """Named tensors (drawn again, ...): the second draw, independent of the first; empty if not asked for."""
    numbers: tuple[Samples, Samples]
    """The fields of both draws that are one int64 a sample, in host memory; perhaps others, too."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One background job: what is stored and what is drawn while step `step` trains."""

    step: int
    representatives: int
    """Drawn for the next step, per rank."""
    distillation: int = 0
    """Drawn a second time for the next step, per rank."""
    fewer: tuple[int, int] = (0, 0)
    """How many of the last ranks draw one sample less, in each of these two draws."""
    capacity: int | None = None
    """Samples that the buffers of all ranks may hold from now on; None: as before."""
    candidates: int | None = None
    """Samples of every mini-batch offered from now on once the buffer is full, per rank; None: as before."""
    policy: str | None = None
    """What stays from now on; None: as before."""
    settings: int = 0
    """Digest of the settings in force."""
    command: int = 0
    """Number of the newest command applied."""
    generation: int = 0
    branch: int = 0


def steered(settings: Rehearsal, work: Round) -> Rehearsal:
    """The settings from this round on."""
    candidates = settings.candidates if work.candidates is None else work.candidates
    policy = settings.policy if work.policy is None else work.policy
    if (candidates, policy) == (settings.candidates, settings.policy):
        return settings  # at every step but a few: all settings would be checked anew
    return replace(settings, candidates=candidates, policy=policy)


@dataclass(frozen=True)
class Pending:
    """A hand-over on its way to the store: what one mini-batch offered."""

    rows: Callable[[], Words]
    """Gives the packed rows, (sample, word); SettingsError if a value is not finite."""
    groups: list[int]
    """The group of each of them."""
    newest: list[int]
    """Groups of the whole mini-batch, in order, of which perhaps not all were offered."""
    learned: Callable[[], Replayed] = lambda: NOTHING
    """Gives `replayed`, where that has arrived in host memory."""

    @property
    def replayed(self) -> Replayed:
        """What the same step has shown of the representatives; nothing without loss-aware removal."""
        return self.learned()

    def accepted(self, layout: RowLayout) -> Accepted | Packed | PackedThere:
        """The samples, to be copied into the rows of a store of this layout; SettingsError as for `rows`."""
        if isinstance(self.rows, (Offered, OfferedThere)):
            return self.rows.accepted()
        return Packed(layout, self.rows())


@dataclass(frozen=True)
class Origin:
    """Whence the samples of one exchange came, in the order of the ranks that had stored them."""

    owners: NDArray[np.int64]
    """(drawn,)."""
    second: NDArray[np.bool_]
    """(drawn,): which belong to the second draw."""
    stored: int
    """Samples in the buffers of all ranks when they were drawn."""


@dataclass(frozen=True)
class Drawn(Origin):
    """What came to this rank in one exchange."""

    rows: torch.Tensor
    """int64 (drawn, word), in host memory."""


@dataclass(frozen=True)
class Staged:
    """What a background job leaves for the next step."""

    drawn: Origin
    on_its_way: Delivered | UnderWay
    """The samples, on their way to the device."""
    seconds: float = 0.0
    """That the job took."""
    placed: tuple[int, ...] = ()
    """Where the rows of each rank lie, as `row_placement` numbers it."""

    def take(self) -> Representatives:
        """The two draws apart, ready for the current stream."""
        drawn, delivered = self.drawn, self.on_its_way.arrived()
        samples, numbers = delivered.take(), delivered.numbers
        if not drawn.second.any():
            none, no_numbers = delivered.nothing
            return Representatives(samples, drawn.owners, drawn.stored, dict(none), (numbers, no_numbers))
        wanted = [torch.from_numpy(np.flatnonzero(each)) for each in (~drawn.second, drawn.second)]
        first, again = (rows_of(samples, rows) for rows in wanted)
        of_first, of_again = (
            (first, again) if numbers is samples else (rows_of(numbers, rows) for rows in wanted)
        )
        return Representatives(first, drawn.owners[~drawn.second], drawn.stored, again, (of_first, of_again))


@dataclass(frozen=True, kw_only=True)
class BufferState:
    """All that one rank's part of the buffer is between two steps."""

    layout: RowLayout
    policy: str
    seed: int
    capacity: int
    """Samples over all ranks."""
    contents: Contents
    policy_state: PolicyState
    """What the policy remembers."""
    step: int
    """The last step that was begun."""
    pending: Pending | None
    """The hand-over that is not stored yet."""
    drawn: Drawn | None
    """Samples drawn for the next step; None before step 0, and after an exchange that failed."""

    def frozen(self) -> BufferState:
        """The same, with all but its contents in memory of its own, which no later step changes."""
        pending, drawn = self.pending, self.drawn
        if pending is not None:
            rows, replayed = pending.rows().copy(), pending.replayed
            pending = replace(pending, rows=lambda: rows, learned=lambda: replayed)
        if drawn is not None:
            drawn = replace(drawn, rows=drawn.rows.clone())
        return replace(self, pending=pending, drawn=drawn)

    def release(self) -> None:
        """Let go of the store, once what `frozen` gave was written or never will be."""
        release(self.contents.rows)
