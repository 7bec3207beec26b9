"""What a rank works with, put together once; the parts know nothing of each other that is not said here."""

from __future__ import annotations

from dataclasses import dataclass

from rehearsal_kit.base.process_groups import Groups
from rehearsal_kit.data.task_stream import Stream
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.rank.checkpoint_writer import Keeper
from rehearsal_kit.rank.decisions import Control
from rehearsal_kit.rank.evaluation import Evaluation
from rehearsal_kit.rank.previewer import Gallery
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.rank.run_spec import Job
from rehearsal_kit.rank.run_state import Course


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """The parts of one rank, for those who carry out a step, a task, a command or a restore with them."""

    job: Job
    identity: str
    """Of the run, as it stands in its checkpoints."""
    groups: Groups
    course: Course
    control: Control
    reporter: Reporter
    learner: Learner
    stream: Stream
    evaluation: Evaluation
    gallery: Gallery
    keeper: Keeper
