"""Branches and numbers of tasks in a timeline; of real runs where that says more."""

from __future__ import annotations

import io
import queue

import pytest
from ranks import small_job
from runkit import arrived
from tqdm import tqdm

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery, Training
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import (
    Arrived,
    FinishStream,
    Pause,
    Reorder,
    Resume,
    RollBack,
    Skip,
    TakeCheckpoint,
    Wish,
)
from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointKept,
    CheckpointTaken,
    Evaluated,
    Noted,
    Steps,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
    TasksReordered,
)
from rehearsal_kit.record.seen import SeenRecords
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.comparison import Outcome
from rehearsal_kit.session.progress_bar import Progress
from rehearsal_kit.session.tables import results_table


def steps(first: int, *losses: float, branch: int = 0) -> Steps:
    return Steps(
        first=first, task=0, losses=losses, seconds=0.5, waited=0.1, hidden=0.3, representatives=3,
        remote=1, stored=40, time=0.0, branch=branch,
    )  # fmt: skip


def taken(number: int, step: int, branch: int = 0) -> CheckpointTaken:
    return CheckpointTaken(step=step, checkpoint=number, weights="", time=0.0, branch=branch)


def branched(branch: int, checkpoint: int, *, step: int = 0, parent: int = 0) -> BranchBegan:
    return BranchBegan(branch=branch, step=step, checkpoint=checkpoint, parent=parent, left=9, time=0.0)


def begun(task: int, branch: int = 0) -> TaskBegan:
    return TaskBegan(step=0, task=task, steps=1, time=0.0, branch=branch)


TWICE_BACK = (
    arrived(0), steps(0, 1.0, 2.0), taken(1, 2), steps(2, 3.0), taken(2, 3), steps(3, 4.0), arrived(1),
    branched(1, 2, step=3), steps(3, 40.0, branch=1), taken(3, 4, 1), steps(4, 50.0, branch=1),
    branched(2, 1, step=2, parent=1), steps(2, 300.0, branch=2),
    CheckpointKept(checkpoint=3, bytes=1, seconds=0.1, error=None),
)  # fmt: skip


def test_without_branches_nothing_is_copied():
    timeline = Timeline([arrived(0), steps(0, 1.0), taken(1, 1)])
    assert timeline.lineage() is timeline
    assert timeline.lineage(0) is timeline
    assert (timeline.branches, timeline.left_behind()) == ([0], {})


@pytest.mark.parametrize(
    ("branch", "losses"),
    [(0, [1, 2, 3, 4]), (1, [1, 2, 3, 40, 50]), (2, [1, 2, 300]), (None, [1, 2, 300])],
)
def test_a_lineage_goes_through_the_checkpoints(branch, losses):
    timeline = Timeline(TWICE_BACK)
    straight = timeline.lineage(branch)
    assert straight.losses() == ([*range(len(losses))], losses)
    assert straight.lineage() is straight
    assert straight.branches == [2 if branch is None else branch]
    # What the world brought counts in every branch.
    assert [*straight.tasks()] == [0, 1]
    assert len(straight.records(CheckpointKept)) == 1
    assert len(straight.records(BranchBegan)) == 2


def test_what_was_left_behind_is_the_rest():
    left = Timeline(TWICE_BACK).left_behind()
    assert {branch: each.losses()[1] for branch, each in left.items()} == {0: [3, 4], 1: [40, 50]}


def test_branches_are_known_as_soon_as_they_are_told():
    timeline = Timeline()
    for record in TWICE_BACK:
        timeline.append(record)
    assert timeline.branches == [0, 1, 2]
    assert timeline.lineage().records() == Timeline(TWICE_BACK).lineage().records()


def test_an_unknown_branch_is_refused():
    with pytest.raises(SettingsError, match="branch is 3; this run has 0, 1, 2"):
        Timeline(TWICE_BACK).lineage(3)


@pytest.mark.parametrize("record", [branched(1, 5), taken(5, 0, branch=1)])
def test_a_branch_from_an_unknown_checkpoint_stands_alone(record):
    timeline = Timeline([steps(0, 1.0), record, branched(1, 5), steps(0, 9.0, branch=1)])
    assert timeline.lineage().losses()[1] == [9.0]


def test_reordered_tasks_are_numbered_anew():
    timeline = Timeline([*(arrived(task, name) for task, name in enumerate("abcd")), begun(0)])
    timeline.append(TasksReordered(step=0, first=1, order=(3, 1, 2)))
    timeline.append(arrived(4, "e"))
    assert {number: task.name for number, task in timeline.tasks().items()} == dict(enumerate("adbce"))
    assert [task.task for task in timeline.tasks().values()] == [0, 1, 2, 3, 4]
    assert [*timeline.waiting()] == [1, 2, 3, 4]
    timeline.append(TaskSetAside(step=0, name="b", path="/p", reason="skipped"))
    timeline.append(TasksReordered(step=0, first=1, order=(3, 1, 2, 4)))
    assert {number: task.name for number, task in timeline.waiting().items()} == {1: "c", 2: "d", 4: "e"}
    assert timeline.set_aside()[3].reason == "skipped"


def test_a_file_that_was_trained_and_came_again_in_vain_stays_trained():
    timeline = Timeline([arrived(0, "a"), begun(0), TaskSetAside(step=1, name="a", path="/p", reason="torn")])
    assert timeline.set_aside() == {}


def test_the_order_of_what_waits_is_rolled_back_with_the_rest():
    timeline = Timeline([
        arrived(0, "a"), arrived(1, "b"), taken(1, 0), TasksReordered(step=0, first=0, order=(1, 0)),
        branched(1, 1), begun(0, branch=1),
        TasksReordered(step=0, first=0, order=(1, 0), branch=1), branched(2, 1, parent=1),
    ])  # fmt: skip
    names = [[task.name for task in timeline.lineage(branch).tasks().values()] for branch in range(3)]
    assert names == [["b", "a"], ["b", "a"], ["a", "b"]]


def test_a_table_is_of_one_branch():
    def told(error: float, branch: int) -> Evaluated:
        return Evaluated(step=3, after=0, task=0, split="test", errors={"y": error}, branch=branch)

    timeline = Timeline([
        arrived(0), taken(1, 0), told(0.5, 0), Noted(step=3, text="x", time=0.0), branched(1, 1),
        told(0.25, 1),
    ])  # fmt: skip
    assert results_table(timeline).loc[0, "error now"] == 0.25
    assert results_table(timeline, 0).loc[0, "error now"] == 0.5


def test_the_bar_of_a_terminal_is_set_back(capsys):
    timeline = Timeline([arrived(0), begun(0), *TWICE_BACK[1:7]])
    with tqdm(file=io.StringIO()) as bar:
        progress = Progress(bar, [1, 1])
        progress.take(timeline.records())
        assert bar.n == 4
        for record in TWICE_BACK[7:]:
            timeline.append(record)
        progress.take(timeline.records(since=len(TWICE_BACK) - 6))
        progress.branch_off(timeline.lineage())
        progress.say(timeline)
        assert (bar.n, bar.total) == (3, 2)
        assert bar.postfix == "task 1 of 2, 1 task waits, under a minute"
    assert "goes on from a checkpoint as branch 2" in capsys.readouterr().out


def test_an_outcome_is_of_the_newest_branch_and_says_that_somebody_steered():
    steered = Applied(rank=0, step=2, number=1, kind="RollBack", settings={}, digest="d", branch=1)
    outcome = Outcome.of("ER", Timeline([*TWICE_BACK, steered]))
    assert outcome.steps == 3
    assert outcome.tasks == ["scan 0", "scan 1"]
    assert outcome.steered


class Conductor:
    """One rank in this process, steered by what it tells."""

    def __init__(self, folder) -> None:
        self.spec = small_job(
            folder, training=Training(batch=16, epochs=2, scaling="none"), recovery=Recovery(keep_last=100)
        )
        self.timeline = Timeline()
        self.mailbox: queue.SimpleQueue = queue.SimpleQueue()
        self.sent = 0
        self.answers: list = []
        """Pairs of a condition on a record and the commands that are sent when it first holds."""

    def send(self, *commands) -> None:
        for command in commands:
            self.sent += 1
            self.mailbox.put(Wish(self.sent, command).to_json())

    def publish(self, record, line) -> None:
        self.timeline.append(record)
        if self.answers and self.answers[0][0](record):
            self.send(*self.answers.pop(0)[1])

    def run(self) -> str:
        return Rank(self.spec, ProcessGroups(0, 1), mailbox=self.mailbox, publish=self.publish).run()


def test_a_real_run_that_was_rolled_back_tells_one_straight_story(tmp_path):
    beamline = Beamline(folder=tmp_path, scans=3, seed=1)
    scans = [Arrived(name=f"scan {n}", path=str(beamline.write(n))) for n in range(3)]
    conductor = Conductor(tmp_path / "run")
    conductor.send(*scans, FinishStream())
    conductor.answers = [
        (lambda r: isinstance(r, TaskEnded) and r.task == 0, [TakeCheckpoint(), Pause()]),
        (lambda r: isinstance(r, CheckpointKept), [Reorder(order=(2,)), Resume()]),
        (lambda r: isinstance(r, TasksReordered), [Skip(task=2)]),
        (lambda r: isinstance(r, TaskSetAside), [RollBack(checkpoint=1)]),
    ]
    assert conductor.run() == "finished"
    timeline = conductor.timeline
    assert timeline.branches == [0, 1]
    straight = timeline.lineage()
    places, _ = straight.losses()
    assert places == [*range(len(places))]
    assert len(timeline.losses()[0]) >= len(places)
    assert [record.task for record in straight.records(TaskBegan)] == [
        record.task for record in straight.records(TaskEnded)
    ]
    assert not straight.waiting()
    assert len(straight.set_aside()) == 1
    table = results_table(timeline)
    assert table["error now"].notna().sum() == 2


@pytest.mark.parametrize(
    ("decision", "left"),
    [
        ("read in vain", [0, 1]),
        ("given up", [0, 1, 2]),
        ("skipped", [0, 1]),
        ("refused before it became a task", [0, 1, 2, 3, 4]),
    ],
)
def test_what_was_told_before_a_kill_of_a_task_that_is_set_aside_after_it_is_void(decision, left):
    """Task 1 begins before step 2, three of its steps are told, and then the ranks begin again."""
    aside = {"name": "task 1", "path": "/1.cxi", "reason": "gone"}
    after = {
        "read in vain": TaskSetAside(step=2, task=1, **aside),
        "given up": TaskSetAside(step=4, task=1, in_vain=True, **aside),
        "skipped": Applied(rank=0, step=2, number=1, kind="Skip", settings={}, digest=""),
        "refused before it became a task": TaskSetAside(step=2, **aside),
    }[decision]
    told = [
        steps(0, 0.1, 0.2),
        Evaluated(step=2, after=0, task=0, split="test", errors={"": 1.0}),
        Evaluated(step=2, after=0, task=1, split="test", errors={"": 2.0}),
        TaskBegan(step=2, task=1, steps=9, time=0.0),
        steps(2, 0.3, 0.4, 0.5),
    ]
    timeline, known = Timeline([*told, after]), SeenRecords([*told, after])
    assert timeline.losses()[0] == left
    assert [step for step in range(9) if known.has_step(0, step)] == left
    begun = decision in ("given up", "refused before it became a task")
    assert [record.task for record in timeline.records(TaskBegan)] == [1] * begun
    assert [record.task for record in timeline.records(Evaluated)] == [0, 1][: 1 + begun]
    assert known.has(told[3]) == begun
