"""A run as a progress bar on a terminal."""

from __future__ import annotations

from tqdm import tqdm

from rehearsal_kit.errors import RankError
from rehearsal_kit.session import Session
from rehearsal_kit.telemetry import Steps, TaskArrived, TaskBegan, TaskSetAside


def follow(session: Session, title: str, *, expected: int, finish: bool) -> None:
    """Draw the progress of a run until it is over.

    expected: tasks that will come. finish: whether to finish the stream once they all have. RankError
    where the ranks have paused on their own, which nobody is there to mend.
    """
    seen, known, finished = 0, 0, not finish
    # The first task tells how long the others will be: equally long, or longer and longer from scratch.
    weights = [len(session.strategy.tasks(task)) for task in range(expected)]
    with tqdm(desc=title, unit="step", dynamic_ncols=True) as bar:
        while not session.over:
            session.timeline.wait(seen, 0.2)
            records = session.timeline.records(since=seen)
            seen += len(records)
            for record in records:
                match record:
                    case TaskBegan(task=task, steps=steps):
                        known += steps
                        bar.total = known + steps * sum(weights[task + 1 :]) // weights[task]
                        bar.set_postfix_str(f"task {task + 1} of {expected}")
                    case Steps(losses=losses):
                        bar.update(len(losses))
                    case TaskSetAside(name=name, reason=reason):
                        bar.write(f"set aside {name}: {reason}")
            if session.trouble:
                raise RankError(session.trouble)
            if not finished and len(_settled(session)) >= expected:
                session.finish_stream()
                finished = True


def _settled(session: Session) -> set[tuple[str, str]]:
    """Tasks that have come, for good or ill."""
    timeline = session.timeline
    arrived = {(task.name, task.path) for task in timeline.records(TaskArrived)}
    return arrived | {(task.name, task.path) for task in timeline.records(TaskSetAside)}
