"""Previews: made for whoever looks, read once, kept without ever costing more, and never the end of a run."""

from __future__ import annotations

import threading
import time
import warnings

import numpy as np
import pytest
import torch
from runkit import ALONE, Net, carry_out, class_tasks, job_in, same, until, weights_of

from rehearsal_kit.base.errors import SettingsError, TaskError
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.data.experience import NUMBER
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.data.tensor_tasks import open_tensor_task
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.rank import previewer as gallery_module
from rehearsal_kit.rank.previewer import Previewer
from rehearsal_kit.record.commands import Arrived, FinishStream
from rehearsal_kit.record.preview_files import append_previews, read_previews
from rehearsal_kit.record.records import NotKept, TaskEnded

TASKS = 6


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return class_tasks(tmp_path_factory.mktemp("tasks") / "tasks", tasks=TASKS)


class Counted:
    """An experience that counts how often it is asked, has some frames without beam, and may fail."""

    group, simulated, skipped, raw_shape, path, name = None, False, 0, (6,), None, "counted"
    inputs = "image"

    def __init__(self, task, *, dark: range = range(0), watched: int = 40) -> None:
        self.inside = open_tensor_task(task)
        self._dark, self._watched = dark, watched
        self.asked: list[list[int]] = []
        self.error: Exception | None = None

    def count(self, split: str) -> int:
        return self._watched

    def load(self, split: str, places: np.ndarray) -> dict[str, torch.Tensor]:
        if self.error is not None:
            raise self.error
        self.asked.append(places.tolist())
        lit = [place for place in places.tolist() if place not in self._dark]
        samples = self.inside.load(split, np.zeros(len(lit), np.int64))
        return {**samples, NUMBER: torch.tensor(lit, dtype=torch.int64)}


class Looked(Net):
    """Counts how often it predicts, and works in place."""

    predictions = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.predictions += not self.training
        return super().forward(image.mul_(1.5))


def hung(folder, *experiences, average=None) -> tuple[Previewer, Looked]:
    network = Looked()
    learner = Learner(network, Training(average=average), device="cpu", groups=ALONE)
    stream = TaskStream(ALONE, seed=1)
    for number, experience in enumerate(experiences):
        stream.append(Arrived(name=f"{number}", path="/nowhere"), experience)
    samples = {**experiences[0].inside.load("training", np.arange(4)), IDENTITY: torch.arange(4)}
    del samples[NUMBER]
    learner.know(learner.meet(samples, "image"))
    network.predictions = 0
    return Previewer(learner, stream, folder / "previews"), network


def test_nobody_looking_nothing_is_done(tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(gallery_module, "INTERVAL_S", 0.0)
    experience = Counted(tasks[0])
    previewer, network = hung(tmp_path, experience)
    for step in range(5):
        previewer.refresh(0, step=step)
    assert network.predictions == 0
    assert experience.asked == []
    for wrong in ("a", [1], -1, True):  # the training thread would fail on it
        with pytest.raises(SettingsError, match=r"task is .* it must be a whole number"):
            previewer.ask(wrong)
    previewer.refresh(0, step=0)
    previewer.ask(None)
    for step in range(5):
        previewer.refresh(0, step=step)
    assert network.predictions == 5
    assert previewer.newest(None).step == 4
    monkeypatch.setattr(gallery_module, "ASKED_S", 0.0)  # it was long ago
    previewer.refresh(0, step=5)
    assert network.predictions == 5
    previewer.close()


def test_what_the_weights_in_training_predict_is_made_for_whoever_looks_at_it(tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(gallery_module, "INTERVAL_S", 0.0)
    previewer, network = hung(tmp_path, Counted(tasks[0]), average=0.9)
    with torch.no_grad():  # not where their average is
        network.layers[-1].bias[3] += 100.0
    previewer.ask(0)
    previewer.refresh(0, step=1)
    assert network.predictions == 1
    assert previewer.newest(0, trained=True) is None
    previewer.ask(None, trained=True)
    previewer.refresh(0, step=2)
    assert network.predictions == 3  # both are looked at
    by_average, by_weights = previewer.newest(0), previewer.newest(None, trained=True)
    assert (by_average.trained, by_weights.trained) == (False, True)
    assert "predicted 3 (1.00)" in by_weights.words
    assert "predicted 3 (1.00)" not in by_average.words
    previewer.keep([0], after=0, step=3)
    assert network.predictions == 4
    previewer.close()
    ((_, kept),) = read_previews(tmp_path / "previews")
    assert (kept.words, kept.trained) == (by_average.words, None)


def test_where_no_average_is_kept_there_is_one_prediction_whoever_asks(tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(gallery_module, "INTERVAL_S", 0.0)
    previewer, network = hung(tmp_path, Counted(tasks[0]))
    previewer.ask(0)
    previewer.ask(0, trained=True)
    previewer.refresh(0, step=1)
    assert network.predictions == 1
    assert previewer.newest(0) is previewer.newest(0, trained=True)
    assert previewer.newest(0).trained is None
    previewer.close()


def test_the_sample_that_is_shown_is_read_once_and_stays_as_it_is(tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(gallery_module, "INTERVAL_S", 0.0)
    experience = Counted(tasks[0])
    previewer, _ = hung(tmp_path, experience)
    previewer.ask(0)
    previewer.refresh(0, step=1)
    first = previewer.newest(0)
    previewer.refresh(0, step=2)
    second = previewer.newest(0)
    assert experience.asked == [[20]]  # the middle one, and no other
    assert (first.step, second.step) == (1, 2)
    assert np.array_equal(first.input, second.input)  # although the network works in place
    previewer.close()


def test_where_frames_have_no_beam_a_few_are_looked_at_together_and_that_is_remembered(tasks):
    for watched, dark, found in [(40, range(30), 30), (40, range(40), None), (5000, range(5000), None)]:
        stream, experience = TaskStream(ALONE, seed=1), Counted(tasks[0], dark=dark, watched=watched)
        stream.append(tasks[0], experience)
        for _ in range(3):
            sample = stream.shown(0)
            assert (None if sample is None else int(sample[NUMBER])) == found
        assert len(experience.asked) <= 5
        assert len({place for places in experience.asked for place in places}) <= 65
        assert max(place for places in experience.asked for place in places) > 0.7 * watched


def test_what_is_kept_can_be_seen_long_after(tmp_path, tasks):
    previewer, _ = hung(tmp_path, *[Counted(task) for task in tasks])
    for after in range(TASKS):
        previewer.keep(range(after + 1), after=after, step=10 * after)
    previewer.close()
    kept = {(after, preview.task): preview for after, preview in read_previews(tmp_path / "previews")}
    assert set(kept) == {(after, task) for after in range(TASKS) for task in range(after + 1)}
    assert [path.name for path in sorted((tmp_path / "previews").iterdir())] == [
        f"after_{after:06d}.h5" for after in range(TASKS)
    ]
    assert all(kept[after, task].step == 10 * after for after, task in kept)


def test_memory_holds_the_newest_and_those_seen_last_others_are_made_when_asked_for(
    tmp_path, tasks, monkeypatch
):
    monkeypatch.setattr(gallery_module, "INTERVAL_S", 0.0)
    previewer, _ = hung(tmp_path, *[Counted(task) for task in tasks])
    previewer.keep([5, 0, 1, 2, 3, 4], after=5, step=10)
    assert [task for task in range(TASKS) if previewer.newest(task) is not None] == [1, 2, 3, 4, 5]
    assert previewer.newest(None).task == 5
    previewer.ask(0)
    previewer.refresh(5, step=11)
    assert previewer.newest(0).step == 11
    assert previewer.newest(1) is None
    previewer.close()


def test_after_a_roll_back_the_newest_is_of_the_task_under_way(tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(gallery_module, "INTERVAL_S", 0.0)
    previewer, _ = hung(tmp_path, *[Counted(task) for task in tasks], average=0.9)
    previewer.keep(range(TASKS), after=5, step=10)
    for trained in (False, True):
        previewer.ask(None, trained=trained)
    previewer.refresh(5, step=11)
    previewer.refresh(2, step=3)
    for trained in (False, True):
        newest = previewer.newest(None, trained=trained)
        assert (newest.task, newest.step) == (2, 3)
    previewer.close()


def test_very_many_at_once_lie_in_several_files(tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(gallery_module, "TOGETHER", 4)
    previewer, _ = hung(tmp_path, *[Counted(task) for task in tasks])
    previewer.keep(range(TASKS), after=5, step=1)
    previewer.close()
    assert len(list((tmp_path / "previews").iterdir())) == 2
    assert sorted(preview.task for _, preview in read_previews(tmp_path / "previews")) == list(range(TASKS))


def test_a_file_of_previews_that_is_damaged_costs_a_warning(tmp_path, tasks):
    previewer, _ = hung(tmp_path, Counted(tasks[0]))
    for after in (0, 1):
        previewer.keep([0], after=after, step=after)
    previewer.close()
    (tmp_path / "previews" / "after_000001.h5").write_bytes(b"no HDF5")
    with pytest.warns(UserWarning, match=r"after_000001\.h5 cannot be read"):
        assert [after for after, _ in read_previews(tmp_path / "previews")] == [0]


def test_what_went_wrong_and_is_over_before_anybody_asks_is_said_all_the_same(tmp_path, tasks):
    previewer, _ = hung(tmp_path, Counted(tasks[0]))
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "after_000000.h5").write_bytes(b"no HDF5")
    previewer.keep([0], after=0, step=0)
    previewer.keep([0], after=1, step=1)
    previewer.close()
    assert "previews cannot be written" in previewer.news()
    assert (previewer.news(), previewer.news()) == ("", None)


def test_what_went_wrong_is_said_once_and_when_it_is_over(tmp_path, tasks):
    lost = Counted(tasks[1])
    previewer, _ = hung(tmp_path, Counted(tasks[0]), lost)
    said: list[str] = []

    def hear() -> list[str]:
        news = previewer.news()
        return said if news is None else [said.append(news), said][1]

    blocked = tmp_path / "previews"
    blocked.write_text("no folder")
    previewer.keep([0], after=0, step=0)
    previewer.keep([0], after=1, step=1)
    until(lambda: len(hear()) == 1)
    assert "previews cannot be written: File exists" in said[0]
    blocked.unlink()
    previewer.keep([0], after=2, step=2)
    until(lambda: len(hear()) == 2)
    assert said[1] == ""
    lost.error = TaskError("the file was moved away")
    previewer.keep([1], after=3, step=3)  # evaluation says what became of its file
    assert len(hear()) == 2
    previewer.close()


@pytest.mark.parametrize("how", ["no folder can be made", "a damaged file"])
def test_a_run_whose_previews_cannot_be_written_ends_like_any_other(tmp_path, tasks, how):
    plan = [*[(0, task) for task in tasks[:2]], (0, FinishStream())]
    whole, spec = job_in(tmp_path / "whole"), job_in(tmp_path / "run")
    carry_out(ALONE, whole, plan)
    if how == "no folder can be made":
        spec.run.previews.write_text("in the way")
    else:
        spec.run.previews.mkdir()
        (spec.run.previews / "after_000000.h5").write_bytes(b"no HDF5")
    outcome, timeline = carry_out(ALONE, spec, plan)
    assert outcome == "finished"
    assert len(timeline.records(TaskEnded)) == 2
    assert timeline.records(NotKept)[0].reason
    assert same(weights_of(spec), weights_of(whole))


def test_ranks_that_end_early_leave_no_half_of_a_file_and_write_none_that_wait(tmp_path, tasks, monkeypatch):
    begun, goes_on = threading.Event(), threading.Event()

    def slowly(folder, previews, **places):
        begun.set()
        assert goes_on.wait(60)
        append_previews(folder, previews, **places)

    monkeypatch.setattr(gallery_module, "append_previews", slowly)
    monkeypatch.setattr(gallery_module, "MOMENT_S", 60.0)
    previewer, _ = hung(tmp_path, Counted(tasks[0]))
    for after in range(4):
        previewer.keep([0], after=after, step=after)
    assert begun.wait(60)
    threading.Timer(0.2, goes_on.set).start()
    began = time.monotonic()
    previewer.abandon()
    assert time.monotonic() - began < 30
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["after_000000.h5"]


def test_a_disk_that_does_not_answer_holds_nobody_up_who_ends_early(tmp_path, tasks, monkeypatch):
    goes_on = threading.Event()
    monkeypatch.setattr(gallery_module, "append_previews", lambda *_, **__: goes_on.wait(60))
    previewer, _ = hung(tmp_path, Counted(tasks[0]))
    previewer.keep([0], after=0, step=0)
    began = time.monotonic()
    previewer.abandon()
    assert time.monotonic() - began < 20 * gallery_module.MOMENT_S < 60
    goes_on.set()


def test_an_append_copies_nothing_of_the_tasks_before(tmp_path, tasks):
    previewer, _ = hung(tmp_path, Counted(tasks[0]))
    previewer.keep([0], after=0, step=0)
    previewer.close()
    ((_, preview),) = read_previews(tmp_path / "previews")
    for after in range(1, 30):
        append_previews(tmp_path / "previews", [preview], after=after)
    sizes = {path.stat().st_size for path in (tmp_path / "previews").iterdir()}
    assert len(sizes) == 1  # bytes written per task do not grow
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [after for after, _ in read_previews(tmp_path / "previews")] == list(range(29, -1, -1))
