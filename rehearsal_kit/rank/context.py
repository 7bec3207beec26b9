"""What a rank works with, put together once; the parts know nothing of each other that is not said here."""

from __future__ import annotations

from dataclasses import dataclass

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.rank.checkpoint_writer import CheckpointWriter
from rehearsal_kit.rank.decisions import Decisions
from rehearsal_kit.rank.evaluation import Evaluation
from rehearsal_kit.rank.previewer import Previewer
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.run_state import RunState


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """The parts of one rank, for those who carry out a step, a task, a command or a restore with them."""

    spec: RunSpec
    identity: str
    """Identity of the run, as it stands in its checkpoints."""
    groups: ProcessGroups
    run_state: RunState
    decisions: Decisions
    reporter: Reporter
    learner: Learner
    stream: TaskStream
    evaluation: Evaluation
    previewer: Previewer
    checkpoint_writer: CheckpointWriter
