"""All figures of one case on one rank: sessions in turns, then one alone; and what the card could do."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.bench.clock import is_cuda, now, seconds_of
from rehearsal_kit.bench.gpu.attainable import Attainable, attainable
from rehearsal_kit.bench.gpu.cases import Case, Effort
from rehearsal_kit.bench.gpu.driven_rank import DrivenRank
from rehearsal_kit.bench.gpu.findings import FASTEST, FROM_HOST, WITH, WITHOUT, CaseFindings, Counted, Memory
from rehearsal_kit.bench.gpu.synchronisations import heard
from rehearsal_kit.bench.ranks.exchange_ranks import Rows, measure_exchange
from rehearsal_kit.buffer.draw_plan import plan_draw
from rehearsal_kit.buffer.row_layout import WORD
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.shard_room import ShardRoom
from rehearsal_kit.data.tensor_tasks import write_task
from rehearsal_kit.learning.gpu_arithmetic import gpu_arithmetic
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.record.commands import Command, Evaluate, TakeCheckpoint
from rehearsal_kit.record.run_folder import RunFolder

TASK = "task.h5"
WARM_UP = 3
"""Steps after the buffer is full."""


@dataclass(frozen=True, kw_only=True)
class CaseMeasurement:
    """One case, measured once; made on all ranks at the same point."""

    case: Case
    effort: Effort
    groups: ProcessGroups
    device: str
    folder: Path
    """Where `lay_out` was called; all ranks can read it."""

    def findings(self) -> CaseFindings:
        """All of it; what is alone on the card comes first."""
        case, ranks = self.case, self.groups.ranks
        repeatable, fastest = (self._attainable(deterministic=each) for each in (True, False))
        with gpu_arithmetic(self.device, deterministic=True):
            rehearsed, plain, hosted = self.session(ER()), self.session(Incremental()), self._hosted()
        since, blocks = rehearsed.taken, self._in_turns(rehearsed, plain, hosted)
        with gpu_arithmetic(self.device, deterministic=True):
            for each in (plain, hosted):
                if each is not None:
                    each.end()
            del plain, hosted, each
            memory, buffer_there = self._memory(rehearsed), rehearsed.is_buffer_there
            counted = {ER().name: self._counted(rehearsed)}
            stalls = [self._stall(rehearsed, TakeCheckpoint()) for _ in range(self.effort.checkpoints)]
            evaluations = self._evaluations(rehearsed)
            rehearsed.end()
            told, kept = rehearsed.told(since), rehearsed.kept
            del rehearsed
            for strategy in case.strategies[1:]:
                counted[strategy.name] = self.counted(strategy)
            between_ranks = self._between_ranks(repeatable.parameters) if ranks > 1 else {}
        steps = max(1, sum(len(each.losses) for each in told))
        return CaseFindings(
            blocks=blocks,
            waited_s=sum(each.waited for each in told) / steps,
            rows=sum(each.rows for each in told) / steps,
            repeatable=repeatable,
            fastest=fastest,
            counted=counted,
            memory=memory,
            buffer_there=buffer_there,
            checkpoints=stalls,
            checkpoint_bytes=max((each.bytes for each in kept), default=0),
            written=[each.seconds for each in kept],
            evaluations=evaluations,
            **between_ranks,
        )

    @property
    def task(self) -> Path:
        """The file of the only task."""
        return self.folder / TASK

    def _attainable(self, *, deterministic: bool) -> Attainable:
        with gpu_arithmetic(self.device, deterministic=deterministic):
            found = attainable(self.case, self.device, self.effort, deterministic=deterministic)
        _empty(self.device)
        return found

    # Sessions -------------------------------------------------------------------------------------------

    def _hosted(self) -> DrivenRank | None:
        """One with its buffer in host memory, whatever room there is on the device; None on a CPU."""
        room = ShardRoom.of(self.device, ranks=self.groups.ranks)
        return None if room is None else self.session(ER(), replace(room, buffers=False))

    def session(self, strategy: Strategy, room: ShardRoom | None = None) -> DrivenRank:
        """One with a full buffer, whose network has been trained for some steps, which are told apart."""
        case, groups = self.case, self.groups
        run = RunFolder(self.folder / f"{strategy.name}{' hosted' if room is not None else ''}")
        if groups.rank == 0:
            run.create()
        groups.barrier()
        spec = RunSpec(
            run=run,
            seed=0,
            network=case.subject.build(),
            strategy=strategy,
            preparation=Preparation(),
            training=case.training(rehearsed=strategy.replays),
            rehearsal=case.rehearsal(strategy, groups.ranks),
            recovery=Recovery(checkpoint_s=1e9, keep_last=1, keep_best=0),
            device=self.device,
            room=room,
        )
        session = DrivenRank(spec, groups, task=self.task)
        session.step(-(-case.capacity // case.batch) + WARM_UP)
        session.apart()
        return session

    def _in_turns(
        self, rehearsed: DrivenRank, plain: DrivenRank, hosted: DrivenRank | None
    ) -> dict[str, list[float]]:
        """Seconds of a step, by kind of block; who begins changes from round to round."""
        kinds = {WITH: (rehearsed, True), WITHOUT: (plain, True), FASTEST: (rehearsed, False)}
        if hosted is not None:
            kinds[FROM_HOST] = (hosted, True)
        blocks: dict[str, list[float]] = {name: [] for name in kinds}
        names = [*kinds]
        for number in range(-1, self.effort.rounds):  # the first one tries the algorithms of each kind
            for name in names[number % len(names) :] + names[: number % len(names)]:
                session, deterministic = kinds[name]
                with gpu_arithmetic(self.device, deterministic=deterministic):
                    seconds = self._block(session)
                if number >= 0:
                    blocks[name].append(seconds)
        return blocks

    def _block(self, session: DrivenRank) -> float:
        steps = self.effort.steps
        return seconds_of(lambda: session.step(steps), self.device) / steps

    def _memory(self, session: DrivenRank) -> Memory | None:
        _empty(self.device)
        if not is_cuda(self.device):
            return None
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._block(session)
        return Memory(peak=torch.cuda.max_memory_allocated(self.device), before=before)

    def _counted(self, session: DrivenRank) -> Counted:
        now(self.device)
        with heard(self.device) as found:
            session.step(self.effort.counted)
        return Counted(steps=self.effort.counted, here=dict(found.here), elsewhere=dict(found.elsewhere))

    def counted(self, strategy: Strategy) -> Counted:
        """Synchronisations of a session of its own."""
        session = self.session(strategy)
        counted = self._counted(session)
        session.end()
        return counted

    def _stall(self, session: DrivenRank, command: Command) -> float:
        """Seconds that a step takes longer before which this takes effect; nothing is written meanwhile."""
        session.settle()
        usual = self._block(session)
        session.ask(command)
        return seconds_of(session.step, self.device) - usual

    def _evaluations(self, session: DrivenRank) -> list[float]:
        count = self.effort.evaluations if self.case.frames else 0
        return [self._stall(session, Evaluate()) for _ in range(count)]

    # Between ranks --------------------------------------------------------------------------------------

    def _between_ranks(self, parameters: int) -> dict[str, Any]:
        flat = torch.zeros(parameters, device=self.device)
        self.groups.sum(flat)
        calls = self.effort.calls
        sums = [
            seconds_of(lambda: self.groups.sum(flat), self.device, calls=calls)
            for _ in range(self.effort.rounds)
        ]
        image = self.case.subject.samples(0)[self.case.subject.inputs].shape[1:]
        fields = sum(each.dim() > 1 for each in self.case.subject.samples(0).values())
        rows = Rows(
            name=self.case.subject.name,
            image=(fields * image[0], *image[1:]),
            batch=self.case.batch,
            candidates=self.case.candidates,
            representatives=self.case.representatives,
            capacity=self.case.capacity,
        )
        there = self._exchanges_there(rows) if is_cuda(self.device) else []
        return {"sums": sums, "exchange": measure_exchange(self.groups, rows, calls), "exchange_there": there}

    def _exchanges_there(self, rows: Rows) -> list[float]:
        """Seconds of an exchange between devices; none where several ranks share one."""
        groups, words = self.groups, rows.row_bytes // WORD
        if not groups.carries(torch.device(self.device)):
            return []
        plan = plan_draw([rows.capacity] * groups.ranks, [rows.representatives], np.random.default_rng(0))
        sent, received = plan.sent_by(groups.rank)[1], plan.received_by(groups.rank)
        outgoing, incoming = (
            torch.zeros((size, words), dtype=torch.int64, device=self.device)
            for size in (sum(sent), sum(received))
        )

        def exchange() -> None:
            groups.begin_exchange(outgoing, incoming, sent=sent, received=received)()

        exchange()
        return [seconds_of(exchange, self.device, calls=self.effort.calls) for _ in range(self.effort.rounds)]


def lay_out(case: Case, folder: Path, *, ranks: int) -> None:
    """Make the folder of a case, with its task.

    Before there are any ranks: with many of them the task is gigabytes, and they wait a minute at most.
    """
    folder.mkdir(mode=0o700)
    write_task(case.task(ranks), folder / TASK)


def _empty(device: str) -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if is_cuda(device):
        torch.cuda.empty_cache()
