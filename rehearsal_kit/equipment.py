"""What a rank works with, put together once; the parts know nothing of each other that is not said here."""

from __future__ import annotations

from dataclasses import dataclass

from rehearsal_kit.control import Control
from rehearsal_kit.course import Course
from rehearsal_kit.evaluation import Evaluation
from rehearsal_kit.gallery import Gallery
from rehearsal_kit.groups import Groups
from rehearsal_kit.job import Job
from rehearsal_kit.keeper import Keeper
from rehearsal_kit.learner import Learner
from rehearsal_kit.reporter import Reporter
from rehearsal_kit.stream import Stream


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
