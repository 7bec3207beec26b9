"""What a rank works with, put together once; the parts know nothing of each other that is not said here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.distributed_buffer import BufferDevice
from rehearsal_kit.data.shard_room import ShardRoom
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.rank.checkpoint_loader import went_back_to
from rehearsal_kit.rank.checkpoint_writer import CheckpointWriter
from rehearsal_kit.rank.decisions import Decisions
from rehearsal_kit.rank.evaluation import Evaluation
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.rank.mailbox import Mailbox
from rehearsal_kit.rank.previewer import Previewer
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.rank.run_spec import RunSpec, stored_identity
from rehearsal_kit.rank.run_state import RunState
from rehearsal_kit.record.lease import LeaseWatch
from rehearsal_kit.record.records import Record

Publish = Callable[[Record, int | None], None]
"""Takes a record and its line in the timeline to whoever listens; None where it stands in no file."""


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """The parts of one rank, for those who carry out a step, a task, a command or a restore with them."""

    spec: RunSpec
    identity: str
    """Identity of the run, as it stands in its checkpoints."""
    generation: int
    """Which set of ranks of the run this one belongs to."""
    groups: ProcessGroups
    lease: LeaseWatch
    """The lease on the run folder, without which nothing is written there."""
    run_state: RunState
    decisions: Decisions
    reporter: Reporter
    learner: Learner
    stream: TaskStream
    evaluation: Evaluation
    previewer: Previewer
    """Previews; only rank 0 makes any."""
    checkpoint_writer: CheckpointWriter
    room: ShardRoom | None
    """Memory for shards and the buffer beside the ordinary one of the host; None: there is none."""

    @property
    def buffer_device(self) -> BufferDevice:
        """Where the buffer brings representatives, and may lie."""
        return BufferDevice(self.spec.device, self.room)

    @staticmethod
    def of(
        spec: RunSpec,
        groups: ProcessGroups,
        *,
        mailbox: Mailbox,
        publish: Publish,
        generation: int,
        lease: LeaseWatch,
    ) -> RankContext:
        """The parts of a rank that has not begun; all ranks make theirs at the same point."""
        identity = stored_identity(spec.run)
        learner = Learner(spec.network, spec.training, device=spec.device, groups=groups, lag=spec.lag)
        stream = TaskStream(groups, seed=spec.seed)
        reporter = Reporter(spec.run, groups.rank, publish)
        writer = CheckpointWriter(
            spec.run.checkpoints, spec.recovery, groups, generation=generation, run=identity, lease=lease
        )
        if groups.rank == 0:  # which alone removes checkpoints
            writer.pinned |= went_back_to(spec.replays or spec.run)
        evaluation = Evaluation(learner, stream, groups=groups, reporter=reporter, training=spec.training)
        return RankContext(
            spec=spec,
            identity=identity,
            generation=generation,
            groups=groups,
            lease=lease,
            run_state=RunState(LiveSettings.of(spec)),
            decisions=Decisions(spec.run, groups, mailbox, reading=spec.preparation.scan_reading),
            reporter=reporter,
            learner=learner,
            stream=stream,
            evaluation=evaluation,
            previewer=Previewer(learner, stream, spec.run.previews),
            checkpoint_writer=writer,
            room=ShardRoom.of(spec.device, ranks=groups.ranks) if spec.room is None else spec.room,
        )
