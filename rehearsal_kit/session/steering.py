"""What a person can ask of a run: every method makes one command, checks it here, and returns its number."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.settings import SETTINGS
from rehearsal_kit.base.steerable import Value
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
from rehearsal_kit.record.task_fields import TaskFields

Taken = ParamSpec("Taken")


def _takes_settings(steer: Callable[Taken, int]) -> Callable[Taken, int]:
    """The method with all settings of the table in its signature and docstring, for people and for Tab."""
    signature = inspect.signature(steer)
    written = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    filled_in = [setting for name, setting in SETTINGS.items() if name not in signature.parameters]
    keywords = [
        inspect.Parameter(
            setting.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=f"{setting.limits.types[-1].__name__}{' | str' * setting.may_be_off} | None",
        )
        for setting in filled_in
    ]
    lines = [f"{setting.name}: {setting.allowed}. {setting.text}." for setting in filled_in]
    steer.__doc__ = "\n".join([inspect.getdoc(steer) or "", *lines])
    vars(steer)["__signature__"] = signature.replace(parameters=[*written, *keywords])
    return steer


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

    def watch(self, pattern: str, *, existing: bool = True, task: TaskFields | None = None) -> int:
        """Every file that matches, now or later, becomes a task, in natural order of names.

        A pattern that is the name of something means that, and so does the beginning of one that is the name
        of a folder, whatever brackets and stars are in it; ScanError for a folder that is not there.

        existing: whether files that match already count too. task: which datasets of each file make a task;
        None: files are scans, or were written by `write_task`.
        """
        absolute = str(Path(pattern).expanduser().absolute())
        require_possible(absolute)
        return self._wish(Watch(pattern=absolute, existing=existing, fields=task))

    def finish_stream(self) -> int:
        """No more tasks: the run ends when those that have arrived are trained."""
        return self._wish(FinishStream())

    @_takes_settings
    def steer(self, *, strategy: Strategy | None = None, **settings: Value | None) -> int:
        """Change settings at the next step boundary, on all ranks at the same step or on none.

        Returns the number of the wish; `timeline` has an `Applied` record of each rank with that number
        and the step. SettingsError for a name or a value that is not allowed. strategy: one of ours with its
        weights, such as DERpp(alpha=0.3); the loss of the run stays.
        """
        weights = {} if strategy is None else steer_to(strategy)
        if twice := [name for name in weights if settings.get(name) is not None]:
            raise SettingsError(
                f"{', '.join(twice)} came twice, by itself and with {strategy!r}; give it with the strategy."
            )
        return self._wish(Steer(**{**settings, **weights}))

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
