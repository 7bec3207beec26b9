"""What a person can ask of a run: every method makes one command, checks it here, and returns its number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from rehearsal_kit.data.folder_order import require_possible
from rehearsal_kit.data.tensor_tasks import TensorTask, write_task
from rehearsal_kit.learning.strategies.choice import steer_to
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.commands import (
    Arrived,
    Command,
    Evaluate,
    FinishStream,
    FinishTask,
    Note,
    Pause,
    Reopen,
    Reorder,
    Resume,
    RollBack,
    Skip,
    Steer,
    Stop,
    TakeCheckpoint,
    Watch,
)
from rehearsal_kit.record.run_folder import RunFolder


class Steering(ABC):
    """The steering half of a session; who sends the commands is the session's business."""

    run: RunFolder

    @abstractmethod
    def _wish(self, command: Command) -> int:
        """Number a command and send it; SessionError if it comes too late."""

    @abstractmethod
    def _require_going(self, kind: type) -> None:
        """SessionError if no command of this kind can take effect any more."""

    def submit(self, task: str | Path | Arrived | TensorTask) -> int:
        """A task for the stream: a file, an `Arrived` that tells which part of a scan, or own tensors.

        Returns its number. Tensors are written to the run folder once. The ranks open the file at their next
        step boundary; if one of them cannot, it is set aside with the reason and the run goes on.
        """
        self._require_going(Arrived)
        if isinstance(task, TensorTask):
            return self._submitted(task)
        if not isinstance(task, Arrived):
            path = Path(task).expanduser().absolute()
            task = Arrived(name=path.stem, path=str(path))
        return self._wish(task)

    def _submitted(self, task: TensorTask) -> int:
        path = self.run.new_task()
        try:
            arrived = write_task(task, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        try:
            return self._wish(arrived)
        except Exception:  # the run has ended meanwhile; an interrupt may come when the wish is on its way
            path.unlink(missing_ok=True)
            raise

    def watch(self, pattern: str, *, existing: bool = True) -> int:
        """Every file that matches, now or later, becomes a task, in natural order of names.

        A pattern that is the name of something means that, and so does the beginning of one that is the name
        of a folder, whatever brackets and stars are in it; ScanError for a folder that is not there.

        existing: whether files that match already count too.
        """
        absolute = str(Path(pattern).expanduser().absolute())
        require_possible(absolute)
        return self._wish(Watch(pattern=absolute, existing=existing))

    def finish_stream(self) -> int:
        """No more tasks: the run ends when those that have arrived are trained."""
        return self._wish(FinishStream())

    def steer(  # noqa: PLR0913 - one for each setting that may change
        self,
        *,
        learning_rate: float | None = None,
        representatives: int | None = None,
        capacity: int | None = None,
        distillation: int | None = None,
        candidates: int | None = None,
        policy: str | None = None,
        batch: int | None = None,
        strategy: Strategy | None = None,
        alpha: float | None = None,
        beta: float | None = None,
    ) -> int:
        """Change settings at the next step boundary, on all ranks at the same step or on none.

        Returns the number of the wish; `timeline` has an `Applied` record of each rank with that number
        and the step. SettingsError if a value is not allowed. strategy: one of ours with its weights, such as
        DERpp(alpha=0.3); the loss of the run stays.
        """
        weights = {"alpha": alpha, "beta": beta} if strategy is None else steer_to(strategy)
        wanted = Steer(
            learning_rate=learning_rate,
            representatives=representatives,
            capacity=capacity,
            distillation=distillation,
            candidates=candidates,
            policy=policy,
            batch=batch,
            **weights,
        )
        return self._wish(wanted)

    def finish_task(self) -> int:
        """The task under way has been trained enough: evaluate it and begin the next that waits."""
        return self._wish(FinishTask())

    def skip(self, task: int) -> int:
        """Do not train a task that waits."""
        return self._wish(Skip(task=task))

    def reorder(self, *tasks: int) -> int:
        """Train these of the waiting tasks next, in this order; those that wait are numbered anew."""
        return self._wish(Reorder(order=tasks))

    def evaluate(self) -> int:
        """Evaluate all tasks so far, now."""
        return self._wish(Evaluate())

    def checkpoint(self) -> int:
        """Keep all that the run is now; `checkpoints()` lists what is kept."""
        return self._wish(TakeCheckpoint())

    def roll_back(self, checkpoint: int) -> int:
        """Go on from a checkpoint as another branch of the run: weights, optimizer, buffers, settings, task.

        What the run is now is kept as a checkpoint first. Tasks that have arrived since then stay.
        """
        return self._wish(RollBack(checkpoint=checkpoint))

    def note(self, text: str) -> int:
        """Write down what is to be remembered of this step."""
        return self._wish(Note(text=text))

    def pause(self) -> int:
        """Take no more steps until `resume`; the ranks stay ready."""
        return self._wish(Pause())

    def resume(self) -> int:
        """Go on after a pause."""
        return self._wish(Resume())

    def stop(self) -> int:
        """End the run at the next step boundary."""
        return self._wish(Stop())

    def reopen(self) -> int:
        """Let a run that was stopped or finished go on once it is started again."""
        return self._wish(Reopen())
