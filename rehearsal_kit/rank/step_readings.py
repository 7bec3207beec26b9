"""What launched steps came to: looked at some steps later where a GPU computes, and then told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.summed_step import Stepped
from rehearsal_kit.rank.reporter import Reporter


@dataclass(frozen=True)
class Trouble:
    """Why a step was not taken, nor any that was launched after it."""

    step: int
    stepped: Stepped


@dataclass(frozen=True)
class _Spent:
    step: int
    task: int
    seconds: float


class StepReadings:
    """This rank's end; all ranks look at the same steps at the same moment."""

    def __init__(self, learner: Learner, reporter: Reporter) -> None:
        self._learner = learner
        self._reporter = reporter
        self._launched = deque[int]()
        self._sound = deque[Stepped]()
        self._spent = deque[_Spent]()

    def launched(self, step: int) -> None:
        """The learner was given this step."""
        self._launched.append(step)

    def look(self, *, but: int = 0) -> Trouble | None:
        """Look at all launched steps but so many of the newest; the trouble that ends them, if any."""
        for stepped in self._learner.read(but=but):
            step = self._launched.popleft()
            if stepped.trouble:
                self._tell()
                self._launched.clear()
                self._spent.clear()
                return Trouble(step, stepped)
            self._sound.append(stepped)
        self._tell()
        return None

    def spent(self, step: int, task: int, seconds: float) -> None:
        """How long this rank has had to do with a step, which is told once it was looked at."""
        self._spent.append(_Spent(step, task, seconds))
        self._tell()

    def _tell(self) -> None:
        while self._sound and self._spent:
            of = self._spent.popleft()
            self._reporter.stepped(of.step, of.task, stepped=self._sound.popleft(), seconds=of.seconds)
