"""Every command x every interruption, one pair after the other, and random walks of many of both.

What is looked for is in `walks.broken_promises`: nothing lost, no task twice, all ranks equal, every step
told once, nothing left behind, a replay that is bit-identical, and no end but the one that was due.

    python -m pytest -m endurance tests/rank/test_walks.py  # all pairs, and WALKS random walks (default 2000)
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from walks import (
    AS_READ,
    MEANWHILE,
    ON_DEVICE,
    PINNED,
    SIZES,
    Generation,
    Walk,
    broken_promises,
    carry_out,
    walk_tasks,
)

from rehearsal_kit.base.settings import LOSS_AWARE
from rehearsal_kit.buffer.policies import POLICIES
from rehearsal_kit.data import open_experience
from rehearsal_kit.data.scans.doors.files import facts_of
from rehearsal_kit.learning.strategies.registry import STRATEGIES
from rehearsal_kit.rank import reporter, resumption
from rehearsal_kit.rank.evaluation import Evaluation
from rehearsal_kit.rank.resumption import Resumption
from rehearsal_kit.rank.run_state import RunState
from rehearsal_kit.rank.wish_queue import WishQueue
from rehearsal_kit.record.commands import (
    OF_RANKS,
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
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.records import BranchBegan, Noted, Steps, TaskEnded
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.seen import SeenRecords
from rehearsal_kit.record.timeline import Timeline

ARRIVAL = Arrived(name="the next task", path="next")
"""Stands for the next of the tasks until they have been written."""
STEERS = (
    Steer(learning_rate=0.005),
    Steer(representatives=0),
    Steer(representatives=6, candidates=4),
    Steer(capacity=7),
    Steer(capacity=60),
    Steer(policy="fifo"),
    Steer(policy="reservoir"),
    Steer(batch=2),
    Steer(batch=7),
    Steer(strategy="AGEM"),
    Steer(strategy="DERpp", alpha=0.3, draws=2),
    Steer(strategy="DERpp", alpha=0.3, draws=1),
    Steer(strategy="DERppACE"),
    Steer(strategy="ERACE"),
    Steer(strategy="MeanER", consistency=0.3),
    Steer(strategy="CLSER", consistency=0.3),
    Steer(strategy="ER", balance="tasks"),
    Steer(balance=0.5),
    Steer(strategy="Incremental"),
    Steer(strategy="FromScratch"),
)
COMMANDS: dict[str, Command] = {
    "rate": STEERS[0],
    "capacity": STEERS[3],
    "policy": STEERS[6],
    "batch": STEERS[8],
    "strategy": STEERS[9],
    "pause": Pause(),
    "resume": Resume(),
    "finish task": FinishTask(),
    "finish stream": FinishStream(),
    "skip": Skip(task=2),
    "reorder": Reorder(order=(2,)),
    "evaluate": Evaluate(),
    "checkpoint": TakeCheckpoint(),
    "roll back": RollBack(checkpoint=1),
    "note": Note(text="seen"),
    "arrival": ARRIVAL,
    "clipping": Steer(clip_norm=0.01),
    "no clipping": Steer(clip_norm="off"),
}
ELSEWHERE = {
    Stop: "how a generation ends that is stopped or half stopped",
    Reopen: "what the generation after such a one begins with",
    Watch: "it only makes arrivals, which are among `COMMANDS`: tests/data/test_folder_watch.py",
}
"""What a person may wish for that is not among `COMMANDS`, and why."""
INTERRUPTIONS: dict[str, Generation] = {
    "rank 0 killed": Generation(ends="killed", victim=(0, 10**6)),
    "rank 1 killed": Generation(ends="killed", victim=(1, 10**6)),
    "stopped": Generation(ends="stopped"),
    "half stopped": Generation(ends="half stopped"),
    "interrupted": Generation(ends="interrupted"),
    "interrupted, then one rank": Generation(ends="interrupted", ranks=1),
    **{what: Generation(ends="killed", victim=(0, 10**6), meanwhile=what) for what in MEANWHILE},
    "killed, then one rank": Generation(ends="killed", victim=(0, 10**6), ranks=1),
    "killed, then three ranks": Generation(ends="killed", victim=(0, 10**6), ranks=3),
    "stopped, then one rank": Generation(ends="stopped", ranks=1),
    "stopped, then three ranks": Generation(ends="stopped", ranks=3),
    "regrouped, then three ranks": Generation(ends="regrouped", ranks=3),
}
Tasks = tuple[Path, Sequence[Arrived]]
WALKS = int(os.environ.get("WALKS", "2000"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks") / "tasks"
    with pytest.MonkeyPatch.context() as patched:
        # A kill after very few steps must find some that were told.
        patched.setattr(reporter, "PUBLISH_INTERVAL_S", 0.0)
        yield folder, walk_tasks(folder)


def pair(command: Command, interruption: Generation, *, late: bool) -> Walk:
    """A command before or after a checkpoint, an interruption a little later, and the end."""
    asked = [(0, ARRIVAL), (0, ARRIVAL), (0, ARRIVAL)]
    asked += [(1, TakeCheckpoint()), (1, command)] if late else [(1, command), (1, TakeCheckpoint())]
    first = replace(interruption, commands=(*asked, (1, Note(text="before the interruption"))))
    removal = "loss" if late else "random"
    return Walk(2, "ER", "quotas", (first, Generation(commands=((1, Evaluate()),))), removal)


def commands() -> st.SearchStrategy[Command]:
    tasks = st.integers(0, len(SIZES))
    return st.one_of(
        st.sampled_from(STEERS),
        st.sampled_from([Pause(), Resume(), FinishTask(), Evaluate(), Note(text="seen")]),
        st.just(TakeCheckpoint()),
        st.builds(lambda number: RollBack(checkpoint=number), st.integers(1, 6)),
        st.builds(lambda task: Skip(task=task), tasks),
        st.lists(tasks, min_size=1, max_size=2, unique=True).map(lambda order: Reorder(order=tuple(order))),
        st.just(ARRIVAL),
    )


def generations(*, last: bool) -> st.SearchStrategy[Generation]:
    asked = st.lists(st.tuples(st.integers(0, 4), commands()), max_size=6).map(tuple)
    if last:
        return st.builds(Generation, commands=asked)
    return st.builds(
        Generation,
        commands=asked,
        ends=st.sampled_from(["killed", "killed", "stopped", "half stopped", "interrupted", "regrouped"]),
        victim=st.tuples(st.integers(0, 2), st.integers(0, 250)),
        meanwhile=st.sampled_from(["", "", *MEANWHILE]),
        ranks=st.sampled_from([0, 0, 1, 2, 3]),
    )


@st.composite
def walks(draw: st.DrawFn) -> Walk:
    parts = [*draw(st.lists(generations(last=False), min_size=1, max_size=3)), draw(generations(last=True))]
    policy = draw(st.sampled_from(list(POLICIES)))
    return Walk(
        ranks=draw(st.sampled_from([1, 2, 3])),
        strategy=draw(st.sampled_from([*STRATEGIES])),
        policy=policy,
        generations=tuple(parts),
        removal=draw(st.sampled_from(["random", "loss"] if policy in LOSS_AWARE else ["random"])),
    )


def with_tasks(walk: Walk, tasks: Sequence[Arrived]) -> Walk:
    """Every arrival becomes the next of the tasks, the first at the beginning; 0 ranks: as many as before."""
    left, ranks, made = iter(tasks), walk.ranks, []
    for number, part in enumerate(walk.generations):
        asked = [(0, ARRIVAL), *part.commands] if number == 0 else part.commands
        filled = [(gap, next(left, None) if command is ARRIVAL else command) for gap, command in asked]
        ranks = part.ranks or ranks
        made.append(
            replace(part, commands=tuple(each for each in filled if each[1] is not None), ranks=ranks)
        )
    return replace(walk, generations=tuple(made))


def broken_by(walk: Walk, tasks: Tasks) -> list[str]:
    """Every promise that was broken on this walk."""
    # In memory where there is some: a walk waits for the disk hundreds of times.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="walk-", dir=memory))
    try:
        walked = carry_out(with_tasks(walk, tasks[1]), folder / "run", tasks[0])
        return broken_promises(walked, folder / "again")
    finally:
        shutil.rmtree(folder)


def broken_pairs(
    commands: dict[str, Command], interruption: Generation, tasks: Tasks, *, late: bool
) -> dict[str, list[str]]:
    """By name of the command: the promises that were broken where it met an interruption."""
    found = {name: broken_by(pair(each, interruption, late=late), tasks) for name, each in commands.items()}
    return {name: broken for name, broken in found.items() if broken}


def random_walks(count: int, tasks: Tasks, *, fixed: bool) -> None:
    # Not shrunk: when a checkpoint is whole depends on the clock, so the same walk may go another way.
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=fixed,
        suppress_health_check=list(HealthCheck),
    )
    @given(walks())
    def walk_on(walk: Walk) -> None:
        assert broken_by(walk, tasks) == []

    walk_on()


def test_every_command_that_a_person_may_wish_for_is_walked():
    wished = set(Command.__args__) - set(OF_RANKS)
    walked = {type(command) for command in COMMANDS.values()}
    assert wished - walked == set(ELSEWHERE)


@pytest.mark.parametrize("place", range(len(INTERRUPTIONS)), ids=list(INTERRUPTIONS))
def test_a_ninth_of_the_pairs(tasks, place):
    """Every interruption with every ninth command, others for the next: all of both are met."""
    name = list(INTERRUPTIONS)[place]
    some = {command: COMMANDS[command] for command in [*COMMANDS][place % 9 :: 9]}
    assert broken_pairs(some, INTERRUPTIONS[name], tasks, late=place % 2 == 0) == {}


def test_random_walks_that_are_the_same_every_time(tasks):
    random_walks(12, tasks, fixed=True)


def test_a_checkpoint_before_what_was_told_of_before_a_kill(tasks):
    """Steps 1 and 2 were told of in one record, then came a kill, and a checkpoint between the two."""
    asked = (
        (4, RollBack(checkpoint=4)),
        (3, Steer(batch=7)),
        (1, RollBack(checkpoint=3)),
        (2, FinishTask()),
        (0, ARRIVAL),
        (2, Skip(task=6)),
    )
    killed = Generation(commands=asked, ends="killed", victim=(0, 54), ranks=0)
    walk = Walk(3, "FromScratch", "reservoir", (killed, Generation(commands=asked)))
    assert broken_by(walk, tasks) == []


def test_a_decision_before_what_was_told_of_before_a_kill(tasks):
    """Killed when steps 1 and 2 had been told of: a new rate from step 1 on changes the loss of step 2."""
    asked = ((0, ARRIVAL), (0, ARRIVAL), (1, TakeCheckpoint()), (9, Note(text="never heard")))
    killed = Generation(commands=asked, ends="killed", victim=(0, 40))
    walk = Walk(2, "ER", "quotas", (killed, Generation(commands=((0, STEERS[0]),))))
    assert broken_by(walk, tasks) == []


@pytest.mark.parametrize("gaps", [(0, 0), (1, 1)], ids=["at once", "one by one"])
def test_tasks_are_numbered_anew_alike_whether_or_not_a_skipped_one_was_passed_over(tasks, gaps):
    """What was decided at one boundary after the other is decided at one of them when it is replayed."""
    asked = [
        (0, ARRIVAL),
        (0, ARRIVAL),
        (0, Skip(task=0)),
        (0, TakeCheckpoint()),
        (0, RollBack(checkpoint=1)),
    ]
    asked += [(gaps[0], Note(text="seen")), (gaps[1], Reorder(order=(2,)))]
    assert broken_by(Walk(1, "ER", "quotas", (Generation(commands=tuple(asked)),)), tasks) == []


def test_both_averages_go_on_after_a_kill_a_roll_back_and_on_other_ranks(tasks, tmp_path):
    started = ((0, ARRIVAL), (0, ARRIVAL), (0, Steer(strategy="CLSER", consistency=0.5)))
    back = ((5, TakeCheckpoint()), (2, RollBack(checkpoint=1)), (6, Note(text="seen")))
    killed = Generation(commands=(*started, *back), ends="killed", victim=(0, 10**6))
    parts = (killed, Generation(((2, Note(text="seen")),), ends="interrupted", ranks=1), Generation())
    walk = with_tasks(Walk(2, "ER", "reservoir", parts), tasks[1])
    timeline, _ = kept(walk, tasks, tmp_path)
    assert any(record.terms.get("consistency", 0) > 0 for record in timeline.records(Steps))


@pytest.mark.parametrize(
    "command", [Stop(), Pause(), RollBack(checkpoint=1), FinishStream()], ids=lambda each: type(each).__name__
)
def test_more_ranks_take_over_at_the_end_of_a_task_with_what_was_asked_meanwhile(tasks, tmp_path, command):
    """No step is taken twice, and a wish that none of the former ranks has heard takes effect once."""
    asked = ((0, ARRIVAL), (0, ARRIVAL), (0, TakeCheckpoint()), (1, Note(text="seen")))
    first = Generation(commands=asked, ends="regrouped", ranks=3, unheard=(command,))
    then = [Generation(ends="stopped", ranks=3)] if isinstance(command, Stop) else []
    walk = Walk(2, "ER", "quotas", (first, *then, Generation(commands=((0, Evaluate()),))))
    walked = carry_out(with_tasks(walk, tasks[1]), tmp_path / "run", tasks[0])
    assert [result[0] for result in walked.results[0]] == ["regrouped"] * 2
    told = Timeline.load(walked.spec.run.timeline)
    began = told.records(BranchBegan)[0]
    assert began.step == began.left
    assert began.step == [each.step for each in told.records(TaskEnded) if each.branch == 0][-1]
    assert broken_promises(walked, tmp_path / "again") == []


def test_ranks_that_repeat_what_is_recorded_keep_it_before_more_take_over(tasks, tmp_path):
    """Else all that was trained since the checkpoint before the kill would be trained once more."""
    asked = ((0, TakeCheckpoint()), (0, ARRIVAL), (0, ARRIVAL), (0, ARRIVAL), (4, Note(text="seen")))
    killed = Generation(commands=asked, ends="killed", victim=(0, 10**6))
    walk = Walk(2, "ER", "quotas", (killed, Generation(ends="regrouped", ranks=3), Generation()))
    walked = carry_out(with_tasks(walk, tasks[1]), tmp_path / "run", tasks[0])
    (began,) = Timeline.load(walked.spec.run.timeline).records(BranchBegan)
    assert began.checkpoint == 2
    assert broken_promises(walked, tmp_path / "again") == []


def test_nobody_takes_over_where_nothing_is_left_to_train(tasks, tmp_path):
    first = Generation(((0, FinishStream()),), ends="regrouped", ranks=3)
    walk = Walk(2, "ER", "quotas", (first, Generation()))
    walked = carry_out(with_tasks(walk, tasks[1]), tmp_path / "run", tasks[0])
    assert [result[0] for result in walked.results[0]] == ["finished"] * 2
    assert broken_promises(walked, tmp_path / "again") == []


@pytest.mark.parametrize("room", [ON_DEVICE, PINNED, AS_READ], ids=["on the device", "pinned", "as read"])
def test_wherever_shards_and_buffers_lie_a_run_comes_to_what_it_comes_to_on_a_cpu(tasks, room, tmp_path):
    """Killed, rolled back, steered, on another number of ranks: with the mini-batches that a CPU has."""
    started = ((0, ARRIVAL), (0, ARRIVAL), (0, Steer(strategy="DERpp")), (2, TakeCheckpoint()))
    back = ((3, Steer(batch=2)), (2, RollBack(checkpoint=1)), (2, Steer(batch=3)), (1, Note(text="seen")))
    killed = Generation(commands=(*started, *back), ends="killed", victim=(0, 10**6))
    parts = (killed, Generation(((1, Note(text="seen")),), ends="interrupted", ranks=1), Generation())
    walk = with_tasks(Walk(2, "ER", "quotas", parts, room=room), tasks[1])
    walked = carry_out(walk, tmp_path / "run", tasks[0])
    assert broken_promises(walked, tmp_path / "again") == []
    notes = {record.text for record in Timeline.load(walked.spec.run.timeline).records(Noted)}
    said = {text.partition(" lie ")[2][:11] for text in notes if text.startswith("the rows of the rehearsal")}
    # Where it is asked after more steps than these ranks take, nothing is said.
    assert said == {ON_DEVICE: {"on the devi"}, PINNED: {"in host mem"}, AS_READ: set()}[room]


def test_checkpoints_are_the_same_wherever_the_rows_of_the_buffer_lie(tasks, tmp_path):
    asked = ((0, ARRIVAL), (0, Steer(strategy="DERpp")), (4, TakeCheckpoint()), (3, Steer(capacity=15)))
    asked += ((2, TakeCheckpoint()), (2, Steer(capacity=30)), (2, Steer(policy="reservoir")))
    asked += ((3, TakeCheckpoint()), (1, Note(text="seen")))
    found = []
    for place, room in {"here": None, "there": ON_DEVICE, "sent there": PINNED}.items():
        walk = Walk(2, "ER", "quotas", (Generation(asked),), removal="loss", room=room)
        walk = with_tasks(walk, tasks[1])
        run = carry_out(walk, tmp_path / place, tasks[0]).spec.run
        shards = sorted(run.checkpoints.rglob("buffer-*.safetensors"))
        found.append([(path.relative_to(run.checkpoints), path.read_bytes()) for path in shards])
    assert len(found[0]) >= 6
    assert found[1] == found[2] == found[0]


def test_a_roll_back_to_a_task_whose_file_is_gone_since(tasks):
    """Task 0 was trained, rolled back, and trained again; then a kill, and its file is archived meanwhile."""
    asked = ((0, TakeCheckpoint()), (3, RollBack(checkpoint=1)), (3, Note(text="seen")))
    killed = Generation(commands=asked, ends="killed", victim=(0, 10**6), meanwhile="archived")
    walk = Walk(2, "ER", "quotas", (killed, Generation(commands=((0, ARRIVAL),))))
    assert broken_by(walk, tasks) == []


def test_a_task_of_long_ago_that_is_trained_with_a_later_one_is_gone_since(tasks):
    """After a checkpoint task 1 was trained together with task 0; then a kill, and that file is gone."""
    asked = ((9, TakeCheckpoint()), (0, ARRIVAL), (9, Note(text="seen")))
    killed = Generation(commands=asked, ends="killed", victim=(0, 10**6), meanwhile="first")
    walk = Walk(2, "FromScratch", "quotas", (killed, Generation(commands=((0, ARRIVAL),))))
    assert broken_by(walk, tasks) == []


def _outcomes_are_in_no_checkpoint(plant):
    to_plain = RunState.to_plain
    plant(RunState, "to_plain", lambda self: {**to_plain(self), "outcome": ""})


def _facts_bind_any_number_of_ranks(plant):
    plant(Resumption, "_found", lambda *_: {"lost": [], "again": None})


def _files_are_known_by_their_whole_path(plant):
    plant(RunFolder, "inside", lambda self, path: str(path))
    plant(RunFolder, "find", lambda self, path: path)


def _files_are_what_they_are_called(plant):
    plant(open_experience, "require_as_it_arrived", lambda arrived, known=None: facts_of(arrived.path))
    plant(resumption, "require_as_it_arrived", lambda arrived, known=None: facts_of(arrived.path))


def _wishes_are_heard_whenever_they_come(plant):
    plant(WishQueue, "_receive", lambda self, wish: self._waiting.append(wish))


def _what_was_told_is_told_again(plant):
    plant(SeenRecords, "has_step", lambda *_: False)


def _unreadable_tasks_end_the_run(plant):
    plant(Evaluation, "_scores", lambda self, reading: (self._learner.metrics(iter(reading._batches)), ""))


PLANTS = [
    (
        _outcomes_are_in_no_checkpoint,
        "half stopped",
        r"generation 2, rank 0: .*this generation comes to no end",
    ),
    (
        _facts_bind_any_number_of_ranks,
        "killed, then one rank",
        r"generation 2, rank 0: .*the ledger has TaskDone of task 1 .*it has not come about",
    ),
    (
        _files_are_known_by_their_whole_path,
        "moved",
        # Whether the checkpoint was whole before the kill decides who looks for its file in vain.
        r"(?s)(task 1 was set aside|the replay failed): .*/run/tasks/[01]\.h5: there is no such file",
    ),
    (
        _files_are_what_they_are_called,
        "changed",
        r"the replay failed: .*'kind': 'TaskDone', 'task': 3, .*the ledger nothing of the kind",
    ),
    (_wishes_are_heard_whenever_they_come, "rank 0 killed", r"4 tasks were submitted, 8 arrived"),
    (_what_was_told_is_told_again, "rank 1 killed", r"steps were told as \[0, 1, 2, 1, 2, 3,"),
    (
        _unreadable_tasks_end_the_run,
        "archived",
        r"generation 2, rank 0: TaskError\(.*0\.h5: there is no such file",
    ),
]
"""What is taken out again, where that shows, and the words of the promise that it breaks."""


@pytest.mark.parametrize(
    ("fault", "interruption", "said"), PLANTS, ids=[fault.__name__ for fault, _, _ in PLANTS]
)
def test_a_mend_that_is_taken_out_again_is_missed(tasks, monkeypatch, fault, interruption, said):
    fault(monkeypatch.setattr)
    walk = pair(COMMANDS["note"], INTERRUPTIONS[interruption], late=True)
    # In its own words: a walk that is broken for another reason says nothing of the mend. More than one walk:
    # whether a checkpoint was whole before a kill depends on the clock, and with it what a walk comes across.
    broken: list[str] = []
    for _ in range(5):
        broken += broken_by(walk, tasks)
        if any(re.match(said, each) for each in broken):
            return
    pytest.fail(f"not missed in five walks: {broken}")


def kept(walk: Walk, tasks: Tasks, folder: Path) -> tuple[Timeline, list[dict[str, Any]]]:
    """What a kernel knows of a walk that keeps all promises, and the ledger from where ranks began again."""
    walked = carry_out(walk, folder / "run", tasks[0])
    assert broken_promises(walked, folder / "again") == []
    ledger = read_ledger(walked.spec.run.effects)
    begins = [place for place, entry in enumerate(ledger) if entry["kind"] == "BeginAgain"]
    return Timeline.load(walked.spec.run.timeline).lineage(), ledger[begins[0] :]


def killed_after(*commands: Command, meanwhile: str = "", ranks: int = 2) -> Generation:
    """Once all of these have taken effect at the first step."""
    asked = (*((0, each) for each in commands), (1, Note(text="seen")))
    return Generation(asked, ends="killed", victim=(0, 10**6), meanwhile=meanwhile, ranks=ranks)


def test_a_file_submitted_again_after_a_skip_is_trained_where_ranks_begin_again(tasks, tmp_path):
    """Decided again in this order, although arrivals come before decisions otherwise."""
    first, second, third, fourth = tasks[1][:4]
    asked = [first, second, third, TakeCheckpoint(), Skip(task=1), second, fourth, Skip(task=4)]
    walk = Walk(2, "ER", "quotas", (killed_after(*asked, ranks=1), Generation()))
    timeline, again = kept(walk, tasks, tmp_path)
    assert [entry["kind"] for entry in again[1:5]] == ["Skip", "Arrived", "Arrived", "Skip"]
    trained = [timeline.tasks()[record.task].name for record in timeline.records(TaskEnded)]
    assert trained == ["task 0", "task 2", "task 1"]


def test_where_an_arrival_cannot_come_again_numbers_said_before_mean_nothing(tasks, tmp_path):
    """One of three files is gone when ranks begin again: task 1 is what was task 2, which nobody skipped."""
    before = killed_after(*tasks[1][:3], Skip(task=1), meanwhile="first")
    timeline, again = kept(Walk(2, "ER", "quotas", (before, Generation())), tasks, tmp_path)
    (skip,) = [entry for entry in again if entry["kind"] == "Skip"]
    assert "numbers" in skip["refused"]
    assert {task: arrived.name for task, arrived in timeline.tasks().items()} == {0: "task 1", 1: "task 2"}
    assert not timeline.waiting()


def test_a_task_is_trained_although_an_earlier_one_of_its_strategy_is_gone(tasks, tmp_path):
    """In the middle of a task that is trained together with those before it; the file of one is gone then."""
    asked = (*((0, each) for each in tasks[1][:3]), (0, Note(text="seen")), (2, Note(text="seen")))
    before = Generation(asked, ends="interrupted", meanwhile="first")
    timeline, again = kept(Walk(2, "FromScratch", "quotas", (before, Generation())), tasks, tmp_path)
    assert [task for task, _ in again[0]["lost"]] == [0]
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 1, 2]


def test_where_a_file_is_gone_that_came_after_the_checkpoint_rolled_back_to_another_branch_begins(
    tasks, tmp_path
):
    """It was trained once more there, after the newest checkpoint, and taken away once it had been."""
    asked = ((0, TakeCheckpoint()), (0, tasks[1][0]), (1, RollBack(checkpoint=1)), (4, Note(text="seen")))
    before = Generation(asked, ends="killed", victim=(0, 10**6), meanwhile="archived")
    timeline, again = kept(Walk(2, "ER", "quotas", (before, Generation())), tasks, tmp_path)
    assert [entry["kind"] for entry in again].count("BeginAgain") == 1
    assert [record.name for record in timeline.set_aside().values()] == ["task 0"]


def test_what_was_trained_and_is_gone_is_set_aside_where_a_roll_back_would_train_it_again(tasks, tmp_path):
    """Rolled back to before it: it is neither trained there nor told of otherwise."""
    started = ((0, TakeCheckpoint()), (0, tasks[1][0]), (3, Steer(strategy="FromScratch")))
    under_way = (*started, (1, tasks[1][3]), (2, Note(text="in the middle")))
    before = Generation(under_way, ends="interrupted", meanwhile="archived")
    back = Generation(((0, RollBack(checkpoint=1)),))
    walked = carry_out(Walk(2, "Incremental", "quotas", (before, back)), tmp_path / "run", tasks[0])
    assert broken_promises(walked, tmp_path / "again") == []
    timeline = Timeline.load(walked.spec.run.timeline).lineage()
    (aside,) = timeline.set_aside().values()
    assert (aside.name, "submit it again" in aside.reason) == ("task 0", True)
    assert [record.task for record in timeline.records(TaskEnded)] == [1]


@pytest.mark.endurance
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("late", [False, True], ids=["before a checkpoint", "after a checkpoint"])
def test_every_pair(tasks, interruption, late):
    assert broken_pairs(COMMANDS, INTERRUPTIONS[interruption], tasks, late=late) == {}


@pytest.mark.endurance
@pytest.mark.timeout(7200)
def test_many_random_walks(tasks):
    random_walks(WALKS, tasks, fixed=False)
