"""Numbers that are not finite once and not again, as on a device that does not repeat its bits.

Looked at as on a CPU, at once, and as on a GPU: two steps later (LATE), or as soon as something else is about
to take effect between two steps.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from runkit import ALONE, FEATURES, CutOffError, carry_out, job_in, same, weights_of
from threads import World

from rehearsal_kit.base.errors import RankError, ReplayError
from rehearsal_kit.data.tensor_tasks import TensorTask, write_task
from rehearsal_kit.record.commands import FinishStream, Note, Resume, Steer, TakeCheckpoint
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.records import BranchBegan, StateChanged, TaskEnded
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.replay import compare_runs

TASK = 9
"""Steps of one."""
BAD = 13
"""The step whose loss is NaN; the next one begins the second task again."""
LATE = 2
LOOKED_AT = {"at once": (0, BAD + 1), "later": (LATE, BAD + 1 + LATE), "between two steps": (LATE, BAD + 1)}
"""Steps until one is looked at, and the step before which a person asks for something: then all are."""
looked_at = pytest.mark.parametrize(("lag", "over"), LOOKED_AT.values(), ids=LOOKED_AT)


class Moody(torch.nn.Module):
    """Values of vectors, which are NaN now and then.

    at: the training step at which they are, counted in this process from 0; None: at none. when_done: whether
    they are when the second task is evaluated for the first time.
    """

    def __init__(self, at: int | None = None, *, when_done: bool = False) -> None:
        super().__init__()
        self.at, self.when_done = at, when_done
        self.steps = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.layers = torch.nn.Linear(FEATURES, 16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        bad = self.steps == (self.at or 0) + 1 if self.training else self.steps == 2 * TASK
        if bad and (self.at is not None if self.training else self.when_done):
            return self.layers(image) * torch.nan
        return self.layers(image)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Values of vectors."""
    return written(tmp_path_factory.mktemp("tasks"))


def written(folder, *, classes=False):
    """Three tasks of values of vectors, or of classes of them."""
    random, made = torch.Generator().manual_seed(1), []
    for name in ("one", "two", "three"):
        image, value = torch.randn(40, FEATURES, generator=random), torch.randn(40, 16, generator=random)
        value = value.argmax(1) if classes else value
        parts = {"training": slice(16, None), "watched": slice(0, 8), "test": slice(8, 16)}
        splits = {split: {"image": image[part], "value": value[part]} for split, part in parts.items()}
        made.append(write_task(TensorTask(name=name, inputs="image", **splits), folder / f"{name}.h5"))
    return made


def planned(tasks, *, over=BAD + 1):
    """Three tasks, a checkpoint in the first, and an answer to the pause."""
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (5, TakeCheckpoint())]
    return [*plan, (over, Steer(learning_rate=0.005)), (over, Resume()), (over + 3, Note(text="seen"))]


def told(timeline):
    return [record.reason for record in timeline.records(StateChanged) if record.reason]


def kinds(spec):
    return [(entry["kind"], entry["step"]) for entry in read_ledger(spec.run.effects)]


def cut_off(spec, plan, network, at):
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=at, network=network, checkpoints=1)


def replayed(spec, folder, network):
    again = replace(spec, run=job_in(folder).run, replays=spec.run)
    outcome, _ = carry_out(ALONE, again, [], network=network)
    assert outcome == "finished"
    return [each for each in compare_runs(spec.run, again.run) if not each.same]


@looked_at
@pytest.mark.parametrize("when_done", [False, True], ids=["loss", "predictions"])
def test_a_pause_that_does_not_come_again_is_obeyed_all_the_same(tmp_path, tasks, when_done, lag, over):
    over = 2 * TASK + 1 if when_done else over
    plan = planned(tasks, over=over)

    def moody():
        return Moody(when_done=True) if when_done else Moody(BAD)

    whole = job_in(tmp_path / "whole", lag=lag)
    assert carry_out(ALONE, whole, plan, network=moody())[0] == "finished"
    assert ("StartedOver", over) in kinds(whole)
    spec = job_in(tmp_path / "run", lag=lag)
    cut_off(spec, plan, moody(), over + TASK + 5)  # the task has ended, nine steps after it began again
    assert ("TaskDone", over + TASK) in kinds(spec)
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2, network=Moody())
    assert outcome == "finished"
    assert not timeline.records(BranchBegan)
    assert read_ledger(spec.run.effects) == read_ledger(whole.run.effects)
    assert same(weights_of(spec), weights_of(whole))
    assert Timeline.load(spec.run.timeline).losses() == Timeline.load(whole.run.timeline).losses()
    assert replayed(spec, tmp_path / "again", Moody()) == []


@pytest.mark.parametrize(("lag", "over"), [LOOKED_AT["at once"], LOOKED_AT["later"]])
def test_ranks_that_begin_again_while_it_waits_wait_with_the_same_words(tmp_path, tasks, lag, over):
    plan = planned(tasks, over=over)
    spec = job_in(tmp_path / "run", lag=lag)
    cut_off(spec, plan[:-3], Moody(BAD), over)
    assert kinds(spec)[-1] == ("StartedOver", over)
    reason = read_ledger(spec.run.effects)[-1]["reason"]
    assert f"task 1 (two), step {BAD}, rank 0" in reason
    assert "the loss became NaN" in reason
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2, network=Moody())
    assert outcome == "finished"
    assert told(timeline) in ([], [reason])  # it is answered in the next moment
    assert [entry["reason"] for entry in read_ledger(spec.run.effects) if "reason" in entry] == [reason]
    ended = Timeline.load(spec.run.timeline).records(TaskEnded)
    assert [record.task for record in ended] == [0, 1, 2]


@pytest.mark.parametrize("lag", [0, LATE])
@pytest.mark.parametrize("again", [7, 17], ids=["in the middle of a task", "in its last step"])
def test_a_pause_that_was_not_recorded_leads_to_another_branch_on_which_people_are_heard(
    tmp_path, tasks, again, lag
):
    """Nobody is heard while recorded effects are followed, so the run would wait for ever."""
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (5, TakeCheckpoint())]
    plan += [(2 * TASK + 2, Note(text="seen"))]
    spec = job_in(tmp_path / "run", lag=lag)
    cut_off(spec, plan, Moody(), 2 * TASK + 4)
    since = again - 5  # steps that are taken after the checkpoint
    with pytest.raises(RankError, match="goes on from its checkpoint as another branch"):
        carry_out(ALONE, spec, plan, generation=2, network=Moody(since))
    plan += [(again + 1, Steer(learning_rate=0.005)), (again + 1, Resume())]
    outcome, timeline = carry_out(ALONE, spec, plan, generation=3, network=Moody(since))
    assert outcome == "finished"
    assert len(timeline.records(BranchBegan)) == 1
    effects = read_ledger(spec.run.effects)
    assert [entry["kind"] for entry in effects].count("StartedOver") == 1
    assert [entry["task"] for entry in effects if entry["kind"] == "TaskDone" and entry["branch"]] == [
        0,
        1,
        2,
    ]
    assert {entry["number"] for entry in effects if "refused" not in entry} >= set(range(1, len(plan) + 1))


def test_a_replay_that_pauses_where_the_run_did_not_ends_in_words(tmp_path, tasks):
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (2 * TASK + 2, Note(text="seen"))]
    spec = job_in(tmp_path / "run")
    carry_out(ALONE, spec, plan, network=Moody())
    with pytest.raises(ReplayError, match=r"the run has .*StartedOver.*the ledger nothing of the kind"):
        replayed(spec, tmp_path / "again", Moody(BAD))


def test_classes_that_are_no_numbers_are_seen_at_the_end_of_a_task(tmp_path):
    """They are no wrong answers: the task is begun again, and a person is told, as with values."""
    spec = job_in(tmp_path / "run")
    arrivals = [(0, task) for task in written(tmp_path, classes=True)]
    plan = [*arrivals, (0, FinishStream()), (2 * TASK + 1, Resume())]
    outcome, _ = carry_out(ALONE, spec, plan, network=Moody(when_done=True))
    assert outcome == "finished"
    (over,) = (entry for entry in read_ledger(spec.run.effects) if entry["kind"] == "StartedOver")
    assert (over["task"], over["step"]) == (1, 2 * TASK + 1)
    assert "the network predicts numbers that are not finite" in over["reason"]


def test_a_buffer_that_has_no_room_any_more_is_said_and_answered(tmp_path, tasks):
    """Not a matter of numbers; the same wait, for a machine with less memory than the one before."""
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (TASK + 2, Note(text="seen"))]
    spec = job_in(tmp_path / "run")
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=TASK + 3, network=Moody())
    spec = replace(spec, rehearsal=replace(spec.rehearsal, capacity=2**40))
    with pytest.raises(RankError, match=r"is paused at step 0 .*as another branch"):
        carry_out(ALONE, spec, plan, generation=2, network=Moody())
    plan += [(0, Steer(capacity=40)), (0, Resume())]
    outcome, timeline = carry_out(ALONE, spec, plan, generation=3, network=Moody())
    assert outcome == "finished"
    assert "the rehearsal buffer cannot be made" in told(timeline)[0]


def test_runs_of_earlier_versions_which_did_not_write_it_down_are_gone_on_with_and_replayed(tmp_path, tasks):
    plan = planned(tasks)
    spec, whole = job_in(tmp_path / "run"), job_in(tmp_path / "whole")
    carry_out(ALONE, whole, plan, network=Moody(BAD))
    cut_off(spec, plan, Moody(BAD), BAD + TASK + 6)
    for run in (spec.run, whole.run):
        kept = [entry for entry in read_ledger(run.effects) if entry["kind"] != "StartedOver"]
        run.effects.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    # Of the steps after the checkpoint the bad one is another than of all.
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2, network=Moody(BAD - 5))
    assert outcome == "finished"
    assert not timeline.records(BranchBegan)
    assert same(weights_of(spec), weights_of(whole))
    assert replayed(whole, tmp_path / "again", Moody(BAD)) == []


@pytest.mark.parametrize(("lag", "over"), [(0, 9), (LATE, 9), (LATE, 11)])
def test_two_ranks_obey_it_together(tmp_path, tasks, lag, over):
    plan = planned(tasks, over=over)  # a task has six steps on two ranks
    spec, whole = job_in(tmp_path / "run", lag=lag), job_in(tmp_path / "whole", lag=lag)

    def on(spec, *moods, cut=None, generation=1):
        networks = [Moody(at) for at in moods]  # here, as threads share the generator of their weights

        def one(groups):
            try:
                network = networks[groups.rank]
                return carry_out(
                    groups, spec, plan, cut=cut, generation=generation, network=network, checkpoints=1
                )[0]
            except CutOffError:
                groups.world.end("cut off")
                raise RuntimeError("cut off") from None

        return World(2).run(one)

    assert on(whole, 8, None) == ["finished"] * 2  # one rank's samples are at fault
    assert ("StartedOver", over) in kinds(whole)
    assert all(isinstance(result, Exception) for result in on(spec, 8, None, cut=over + 8))
    assert ("StartedOver", over) in kinds(spec)
    assert on(spec, None, None, generation=2) == ["finished"] * 2
    assert kinds(spec) == kinds(whole)
    assert same(weights_of(spec), weights_of(whole))


class _Breaking(torch.autograd.Function):
    @staticmethod
    def forward(_, values):
        return values.clone()

    @staticmethod
    def backward(_, gradient):
        raise ValueError("no way back")


class Broken(Moody):
    """Fails on the way back of so many training steps, one after the other."""

    def __init__(self, at=None, *, times=0):
        super().__init__(at)
        self.times = times

    def forward(self, image):
        self.steps += self.training
        broken = self.training and self.times and self.at < self.steps <= self.at + self.times
        return _Breaking.apply(self.layers(image)) if broken else self.layers(image)


@pytest.mark.parametrize("at", [11, 11 + LATE, 2 * TASK - 1], ids=["in a pass", "later", "in the last step"])
@pytest.mark.parametrize("lag", [0, LATE])
def test_a_task_whose_error_is_seen_later_is_set_aside_there_again(tmp_path, tasks, lag, at):
    """An error on the way back is known to one rank alone until the device has added up who has failed."""
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (5, TakeCheckpoint()), (12, Note(text="a"))]
    spec, whole = job_in(tmp_path / "run", lag=lag), job_in(tmp_path / "whole", lag=lag)
    between, last = lag > 0 and at == 11, at == 2 * TASK - 1
    times = 2 if last or not lag else 1  # what is seen at once is tried once more
    assert carry_out(ALONE, whole, plan, network=Broken(at, times=times))[0] == "finished"
    (aside,) = [entry for entry in read_ledger(whole.run.effects) if entry["kind"] == "SetAside"]
    assert aside.get("between", False) == between
    assert aside["step"] == at + 1 + (0 if between or last else lag)
    assert "no way back (backward, " in aside["reason"]
    assert f"(rank 0, at step {at})" in aside["reason"]
    cut_off(spec, plan, Broken(at, times=times), aside["step"] + 4)
    assert carry_out(ALONE, spec, plan, generation=2, network=Broken())[0] == "finished"
    assert read_ledger(spec.run.effects) == read_ledger(whole.run.effects)
    assert same(weights_of(spec), weights_of(whole))
    assert replayed(spec, tmp_path / "again", Broken()) == []
