"""A timeline that is kept up to date record by record says what looking through all records would say."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import scanned
from hypothesis import given, settings
from hypothesis import strategies as st
from runkit import arrived, written

from rehearsal_kit.bench.run.long_runs import LongRun
from rehearsal_kit.record.rank_records import GenerationBegan, Joined
from rehearsal_kit.record.record_store import NEWEST
from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointKept,
    CheckpointTaken,
    Evaluated,
    Noted,
    StateChanged,
    Steps,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
    TasksReordered,
)
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.tail import TimelineTail
from rehearsal_kit.record.thinning import POINTS, WHOLE, merged, steps_before
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.record.timeline_cache import begin, condense, condensed_path
from rehearsal_kit.reports.comparison import Outcome
from rehearsal_kit.session.tables import checkpoints_table, results_table

SMALL = st.integers(0, 4)


def steps(first: int, losses, *, task: int = 0, branch: int = 0) -> Steps:
    return Steps(
        first=first, task=task, losses=tuple(losses), seconds=0.25, waited=0.125, hidden=0.5,
        representatives=7, remote=3, stored=40, time=float(first), terms={"augmented": 0.5}, distilled=2,
        busy=(0.1, 0.2), outputs_age=3.0, branch=branch,
    )  # fmt: skip


def applied(
    number: int = 0, *, kind: str = "Steer", batch: float = 8, step: int = 0, branch: int = 0, refused=""
):
    return Applied(
        rank=0, step=step, number=number, kind=kind, settings={"batch": batch, "strategy": "ER"}, digest="d",
        refused=refused, branch=branch,
    )  # fmt: skip


def one_record() -> st.SearchStrategy:
    branch, name, losses = st.integers(0, 2), st.sampled_from("abc"), st.lists(st.floats(0.1, 9), min_size=1)
    return st.one_of(
        st.builds(lambda f, x, t, b: steps(f, x, task=t, branch=b), SMALL, losses, SMALL, branch),
        st.builds(lambda n, b, x: applied(n, branch=b, batch=x), SMALL, branch, st.sampled_from([4, 8])),
        st.builds(arrived, SMALL, name, branch),
        st.builds(
            lambda n, t, b: TaskSetAside(step=0, name=n, path="/p", reason="r", task=t, branch=b),
            name, st.none() | SMALL, branch,
        ),
        st.builds(
            lambda t, n, b: TaskBegan(step=0, task=t, steps=n, time=0.0, branch=b), SMALL, SMALL, branch
        ),
        st.builds(lambda t, b: TaskEnded(step=0, task=t, seconds=1.0, time=0.0, branch=b), SMALL, branch),
        st.builds(
            lambda f, o, b: TasksReordered(step=0, first=f, order=tuple(f + i for i in o), branch=b),
            st.integers(0, 2), st.permutations([0, 1, 2]), branch,
        ),
        st.builds(
            lambda t, a, w, e, b: Evaluated(step=a + 1, after=a, task=t, split=w, errors={"y": e}, branch=b),
            SMALL, st.integers(-1, 4), st.sampled_from(["test", "watched"]), st.floats(0, 1), branch,
        ),
        st.builds(
            lambda s, r, b: StateChanged(step=0, state=s, reason=r, branch=b),
            st.sampled_from(["running", "paused"]), st.sampled_from(["", "nan"]), branch,
        ),
        st.builds(
            lambda c, b, s: CheckpointTaken(step=s, checkpoint=c, weights="", time=0.0, branch=b),
            SMALL, branch, SMALL,
        ),
        st.builds(
            lambda b, c, t, a: BranchBegan(
                branch=b, step=0, checkpoint=c, parent=0, left=0, time=0.0, tasks=t, aside=tuple(a)
            ),
            st.integers(1, 2), SMALL, st.none() | SMALL, st.lists(SMALL, max_size=2),
        ),
    )  # fmt: skip


def says_what_scanning_says(timeline: Timeline, records: list) -> None:
    tasks, begun = scanned.queue(records)
    assert {n: task.name for n, task in timeline.tasks().items()} == {
        n: name for n, (name, _) in tasks.items()
    }
    assert all(n == task.task for n, task in timeline.tasks().items())
    assert {n: s.reason for n, s in timeline.set_aside().items()} == {
        n: r for n, (_, r) in tasks.items() if r
    }
    assert [*timeline.waiting()] == [n for n, (_, reason) in tasks.items() if n not in begun and not reason]
    for split in ("test", "watched"):
        assert timeline.error_matrix(split) == scanned.matrix(records, split)
    assert timeline.untaught() == scanned.untaught(records)
    run_state, expected = timeline.run_state(), scanned.left_of_the_task(records)
    assert (None if run_state is None else tuple(vars(run_state).values())) == expected
    assert timeline.grows(0.5) == scanned.grows(records, 0.5)
    assert timeline.records() == records
    for kind in (Steps, Applied, StateChanged):
        assert timeline.records(kind) == [r for r in records if isinstance(r, kind)]
    newest = [r for r in records if isinstance(r, (StateChanged, TaskBegan))]
    assert timeline.newest((StateChanged, TaskBegan)) == (newest[-1] if newest else None)


@settings(max_examples=150, deadline=None)
@given(st.lists(one_record(), max_size=40), st.integers(0, 40))
def test_what_is_kept_up_to_date_is_what_scanning_finds(records, asked):
    timeline = Timeline(records[:asked], bounded=True)
    timeline.lineage(), timeline.left_behind(), timeline.waiting()  # from now on kept up to date
    for record in records[asked:]:
        timeline.append(record)
    records = scanned.without_what_was_left(records)
    led, left = scanned.split(records)
    says_what_scanning_says(timeline, records)
    says_what_scanning_says(timeline.lineage(), led)
    assert {branch: each.records() for branch, each in timeline.left_behind().items()} == left
    for number in timeline.branches:  # also where it is not the newest
        assert timeline.lineage(number).branches == [number]


BACK_AND_FORTH = [
    arrived(0, "a"), arrived(1, "a"), steps(0, [1.0]),
    CheckpointTaken(step=1, checkpoint=1, weights="", time=0.0),
    TaskSetAside(step=1, name="a", path="/p", reason="r", task=1),
    steps(1, [2.0]), BranchBegan(branch=1, step=1, checkpoint=1, parent=0, left=2, time=0.0),
    steps(1, [3.0], branch=1), CheckpointTaken(step=2, checkpoint=3, weights="", time=0.0, branch=1),
    steps(2, [4.0], branch=1), BranchBegan(branch=2, step=1, checkpoint=2, parent=0, left=3, time=0.0),
    steps(2, [5.0], branch=2), CheckpointTaken(step=2, checkpoint=2, weights="", time=0.0, branch=1),
    steps(3, [6.0], branch=2),
]  # fmt: skip


def test_every_moment_of_a_run_that_was_rolled_back_twice():
    """One of the checkpoints is told only after the branch that began there."""
    timeline = Timeline()
    for length, record in enumerate(BACK_AND_FORTH, 1):
        timeline.append(record)
        led, left = scanned.split(BACK_AND_FORTH[:length])
        says_what_scanning_says(timeline.lineage(), led)
        assert {branch: each.records() for branch, each in timeline.left_behind().items()} == left
    assert [*timeline.set_aside()] == [1]  # by its number: both tasks have one name


@settings(max_examples=60, deadline=None)
@given(st.lists(one_record(), max_size=40), st.integers(0, 40))
def test_a_cache_and_the_lines_after_it_say_the_same(tmp_path_factory, records, place):
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run").create()
    written(run, records[:place])
    condense(run.timeline)
    written(run, records[place:])
    history = TimelineTail(run)
    history.catch_up()
    says_what_scanning_says(history.timeline, scanned.without_what_was_left(records))
    assert len(history.timeline) == len(records)


def long_story(tasks: int = 6, each: int = 900) -> list:
    """With a pause, wishes, checkpoints that go, and two branches; 40 losses in a record."""
    told, number, step = [arrived(task) for task in range(tasks)], 0, 0
    told.append(applied(1))
    branch = 0
    for task in range(tasks):
        told.append(TaskBegan(step=step, task=task, steps=40 * each, time=0.0, branch=branch))
        for i in range(each):
            told.append(steps(step, [1 + (step + j) * 31 % 97 for j in range(40)], task=task, branch=branch))
            step += 40
            if i % 100 == 50:
                number += 1
                told.append(
                    CheckpointTaken(step=step, checkpoint=number, weights="", time=0.0, branch=branch)
                )
                gone = (number - 3,) if number > 3 and number - 3 != 20 else ()
                told.append(CheckpointKept(checkpoint=number, bytes=1, seconds=0.1, error=None, removed=gone))
            if i == 333 and task % 2:
                told.append(StateChanged(step=step, state="paused", reason="nan", branch=branch))
            if i == 633 and task % 2:
                told.append(applied(2 + task, batch=16, step=step, branch=branch))
        if task < tasks - 1:
            told.append(TaskEnded(step=step, task=task, seconds=1.0, time=0.0, branch=branch))
        if task == 3:
            branch += 1
            told.append(BranchBegan(branch=1, step=0, checkpoint=20, parent=0, left=step, time=0.0))
    return told


def test_old_steps_are_thinned_and_what_is_asked_of_them_stays():
    records = long_story()
    whole, bounded = Timeline(records), Timeline(records, bounded=True)
    assert len(bounded) == len(whole) == len(records)
    for one, other in ((whole, bounded), (whole.lineage(), bounded.lineage())):
        assert len(other.losses()[0]) <= POINTS
        assert scanned.sums(other.records()) == scanned.sums(one.records())
        assert other.run_state() == one.run_state()
        assert other.latest(Steps, 12) == one.latest(Steps, 12)
        curve, newest = dict(zip(*one.losses(), strict=True)), [*zip(*other.losses(), strict=True)]
        assert all(curve[step] == loss for step, loss in newest)  # real points, none made up
        assert newest[-WHOLE:] == [*curve.items()][-WHOLE:]
        assert (min(other.losses()[1]), max(other.losses()[1])) == (min(curve.values()), max(curve.values()))
    left, kept = whole.left_behind(), bounded.left_behind()
    assert [scanned.sums(each.records()) for each in kept.values()] == [
        scanned.sums(each.records()) for each in left.values()
    ]
    assert checkpoints_table(bounded).equals(checkpoints_table(whole))
    first, second = Outcome.of("ER", whole), Outcome.of("ER", bounded)
    assert (first.steps, first.remote, first.waited) == pytest.approx(
        (second.steps, second.remote, second.waited)
    )


def test_twice_as_long_is_not_more():
    lengths = [len(Timeline(LongRun(n, 40).records(), bounded=True).placed()) for n in (8_000, 16_000)]
    assert lengths[1] < 1.3 * lengths[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda n: StateChanged(step=n, state="running"),
        applied,
        lambda n: GenerationBegan(generation=n, workers=("a",), time=float(n)),
    ],
)
def test_what_comes_again_and_again_is_bounded_and_the_first_and_the_newest_stay(make):
    timeline = Timeline((make(n) for n in range(5 * NEWEST)), bounded=True)
    kept = timeline.records()
    assert len(kept) <= 2 * NEWEST + 1
    assert (kept[0], kept[-1]) == (make(0), make(5 * NEWEST - 1))
    assert kept[-NEWEST:] == [make(n) for n in range(4 * NEWEST, 5 * NEWEST)]


def test_that_somebody_steered_long_ago_is_not_forgotten():
    records = [applied(1, kind="RollBack", refused="no"), applied(2, kind="FinishTask")]
    records += [applied(0, kind="TakeCheckpoint") for _ in range(5 * NEWEST)]
    assert Outcome.of("ER", Timeline(records, bounded=True)).steered


def test_checkpoints_that_went_do_not_come_back_in_a_long_run():
    records = [*LongRun(40_000, 10).records()]
    told = [r for r in records if not isinstance(r, Steps)]
    again = [
        each
        for n in range(200, 200 + 3 * NEWEST)
        for each in (
            CheckpointTaken(step=n, checkpoint=n, weights="", time=0.0),
            CheckpointKept(checkpoint=n, bytes=1, seconds=0.1, error=None, removed=(n - 3,)),
        )
    ]
    whole, bounded = Timeline([*told, *again]), Timeline([*told, *again], bounded=True)
    assert checkpoints_table(bounded).equals(checkpoints_table(whole))
    assert len(bounded.records(CheckpointTaken)) <= 2 * NEWEST + 1


# The cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(run):
    """A longer one, with its cache."""
    written(run, LongRun(2_000, 8).records())
    condense(run.timeline)
    return run


def test_a_kernel_that_begins_with_the_cache_sees_the_same_run(run, caplog):
    whole, history = Timeline.load(run.timeline), TimelineTail(run)
    run.timeline.write_bytes(b"")  # nothing of it is read again
    assert begin(run.timeline, Timeline()).trouble  # but then the cache is not trusted either
    written(run, whole.records())
    history.catch_up()
    assert not caplog.records
    assert results_table(history.timeline).equals(results_table(whole))
    assert checkpoints_table(history.timeline).equals(checkpoints_table(whole))
    assert scanned.sums(history.timeline.records()) == scanned.sums(whole.records())
    assert history.timeline.run_state() == whole.run_state()
    history.hear(Noted(step=0, text="next", time=0.0), len(whole))
    assert history.timeline.last(Noted) is not None


def test_the_cache_is_private_and_made_of_what_it_was_before(run):
    assert condensed_path(run.timeline).stat().st_mode & 0o777 == 0o600
    written(run, [Noted(step=0, text="more", time=0.0)])
    condense(run.timeline)
    timeline = Timeline()
    lines = begin(run.timeline, timeline).lines
    assert (len(timeline), [*lines.read()]) == (lines.number, [])
    assert timeline.last(Noted).text == "more"


def flip(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def other_version(path) -> None:
    head, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(head), "version": 0}).encode() + b"\n" + body)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: flip(path, -100),
        lambda path: flip(path, 0),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff[]\n"),
        other_version,
    ],
)
def test_a_cache_that_is_not_as_it_was_written_is_ignored_and_said(run, spoil, caplog):
    spoil(condensed_path(run.timeline))
    history = TimelineTail(run)
    history.catch_up()
    assert "timeline-condensed.json cannot be used" in caplog.text
    assert results_table(history.timeline).equals(results_table(Timeline.load(run.timeline)))


def test_the_cache_of_another_run_is_ignored_and_said(run, tmp_path, caplog):
    other = RunFolder(tmp_path / "other").create()
    written(other, [Joined(rank=0, ranks=1, device="cpu", process=1, time=0.0), *LongRun(3_000, 8).records()])
    condensed_path(run.timeline).rename(condensed_path(other.timeline))
    history = TimelineTail(other)
    history.catch_up()
    assert "it is not of this timeline.jsonl" in caplog.text
    assert len(history.timeline) == len(Timeline.load(other.timeline))


def test_nothing_that_steps_tell_is_lost_where_they_are_told_together():
    """A new field is one of the sums, or thinning.py says what becomes of it, and this test knows."""
    shown_elsewhere = {"first", "task", "losses", "stored", "time", "terms", "busy", "outputs_age", "branch"}
    assert {field.name for field in fields(Steps)} == {*Steps.SUMS, *shown_elsewhere}
    parts = [
        replace(steps(first, [1.0, 2.0]), **{name: first + place for place, name in enumerate(Steps.SUMS, 1)})
        for first in (2, 4)
    ]
    whole = merged(parts)
    half = steps_before(whole, 4)
    for name in Steps.SUMS:
        total = sum(getattr(part, name) for part in parts)
        assert (getattr(whole, name), getattr(half, name)) == (total, total / 2)


def test_of_steps_that_were_told_together_those_before_a_decision_stay():
    """Also where only the lowest and the highest loss of them are still known."""
    whole = merged([steps(0, [3.0, 2.0, 5.0, 1.0]), steps(4, [4.0, 6.0])])
    kept = steps_before(whole, 4)
    assert (kept.count, kept.losses, [*kept.at]) == (4, (1.0,), [3])
    assert kept.seconds == pytest.approx(whole.seconds * 4 / 6)
    assert [*steps_before(steps(4, [4.0, 6.0]), 5).at] == [4]
    assert steps_before(whole, 0) is None
    assert steps_before(whole, 6) == whole
