"""Ranks that are threads of one process: hundreds of whole runs a minute, and any of them can die anywhere.

What ranks ask of each other are the five collectives of `ProcessGroups`; here they meet at a barrier in
memory. A rank that is killed breaks every connection, as a process that ends does, and what its threads
still do reaches nobody. Networks of such runs must not use torch's random numbers (dropout): threads share
one generator.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rehearsal_kit.base.process_groups import ProcessGroups

COLLECTIVE_S = 30.0
"""Longer than anything that one rank does between two collectives."""


def beside(works: Sequence[Callable[[], object]], *, within_s: float) -> None:
    """Do all of these at the same time, each in a thread of its own; AssertionError if one hangs.

    The threads are daemons: one that hangs fails its test, and does not keep the process from its end.
    """
    threads = [
        threading.Thread(target=work, name=f"beside-{number}", daemon=True)
        for number, work in enumerate(works)
    ]
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    hanging = [thread.name for thread in threads if thread.is_alive()]
    assert not hanging, f"{hanging} of {len(threads)} hang after {within_s:g} s"


class KilledError(BaseException):
    """Stands for kill -9: nothing but the end of the thread may catch it."""


class ConnectionLostError(RuntimeError):
    """What torch.distributed raises, as far as anybody looks: a RuntimeError of the connection."""


class Barrier:
    """Where the ranks of a world meet, again and again, for one kind of collective."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._changed = threading.Condition()
        self._rounds: dict[int, dict[int, Any]] = {}
        self._left: dict[int, int] = {}
        self._next = [0] * ranks
        self.broken = ""

    def meet(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank."""
        with self._changed:
            number = self._next[rank]
            self._next[rank] += 1
            values = self._rounds.setdefault(number, {})
            values[rank] = value
            self._changed.notify_all()
            came = self._changed.wait_for(lambda: len(values) == self._ranks or self.broken, COLLECTIVE_S)
            if len(values) < self._ranks:
                raise ConnectionLostError(
                    f"Connection closed by peer: {self.broken}" if came else "Connection timed out: a hang"
                )
            self._left[number] = self._left.get(number, 0) + 1
            if self._left[number] == self._ranks:
                del self._rounds[number], self._left[number]
            return [values[each] for each in range(self._ranks)]

    def break_up(self, reason: str) -> None:
        """No rank that waits, or comes later, meets the others any more."""
        with self._changed:
            self.broken = self.broken or reason
            self._changed.notify_all()


@dataclass
class World:
    """The ranks of one generation.

    dies: the rank that is killed, and before which of its collectives, counted from 0.
    """

    ranks: int
    dies: tuple[int, int] | None = None
    collectives: int = 0
    """Of the rank that is to die, so far."""
    training: Barrier = field(init=False)
    background: Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.training, self.background = Barrier(self.ranks), Barrier(self.ranks)

    def count(self, rank: int) -> None:
        """Called before every collective of a training thread; the end of the rank whose time has come."""
        if self.dies is not None and rank == self.dies[0]:
            if self.collectives >= self.dies[1]:
                self.end(f"rank {rank} was killed")
                raise KilledError
            self.collectives += 1

    def end(self, reason: str) -> None:
        """Break all connections."""
        self.training.break_up(reason)
        self.background.break_up(reason)

    def run(self, work: Callable[[ThreadGroups], Any]) -> list[Any]:
        """`work(groups)` on every rank; results in order of rank, or the exceptions that ended them."""
        results: list[Any] = [None] * self.ranks

        def one(rank: int) -> None:
            try:
                results[rank] = work(ThreadGroups(rank, self.ranks, world=self))
            except KilledError as killed:
                results[rank] = killed
            except Exception as error:
                error.add_note(traceback.format_exc())
                results[rank] = error
                self.end(f"rank {rank} failed")

        beside([functools.partial(one, rank) for rank in range(self.ranks)], within_s=2 * COLLECTIVE_S)
        return results


@dataclass(frozen=True)
class ThreadGroups(ProcessGroups):
    """One rank's end of a world; the collectives of `ProcessGroups` through memory."""

    world: World | None = None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        everyone = self._training(values.clone())
        total = everyone[0].clone()
        for other in everyone[1:]:
            total += other
        return values.copy_(total)

    def broadcast(self, text: str) -> str:
        return self._training(text)[0]

    def gather(self, text: str) -> list[str]:
        return self._training(text)

    def gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        return self._world.background.meet(self.rank, list(numbers))

    def exchange_rows(
        self, outgoing: torch.Tensor, incoming: torch.Tensor, *, sent: list[int], received: list[int]
    ) -> None:
        everyone = self._world.background.meet(self.rank, _parts(outgoing, sent))
        _receive(everyone, self.rank, incoming, received)

    def begin_exchange(
        self, outgoing: torch.Tensor, incoming: torch.Tensor, *, sent: list[int], received: list[int]
    ) -> Callable[[], object]:
        everyone = self._training(("an exchange", _parts(outgoing, sent)))
        assert {kind for kind, _ in everyone} == {"an exchange"}  # nothing else is under way on any rank
        incoming.fill_(-1)  # what comes is there when it was waited for, not before
        return lambda: _receive([parts for _, parts in everyone], self.rank, incoming, received)

    @property
    def _world(self) -> World:
        assert self.world is not None
        return self.world

    def _training(self, value: Any) -> list[Any]:
        self._world.count(self.rank)
        return self._world.training.meet(self.rank, value)


def _parts(outgoing: torch.Tensor, sent: list[int]) -> list[torch.Tensor]:
    ends = list(itertools.accumulate(sent, initial=0))
    return [outgoing[a:b].clone() for a, b in itertools.pairwise(ends)]


def _receive(
    everyone: Sequence[list[torch.Tensor]], rank: int, incoming: torch.Tensor, received: list[int]
) -> None:
    mine = [parts[rank] for parts in everyone]
    assert [len(part) for part in mine] == received
    torch.cat(mine, out=incoming)
