"""What comes out of a session: the network, its predictions, the table, the export; and what went wrong."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from runkit import written
from safetensors.torch import load_file

from rehearsal_kit.base.errors import RankError, ReplayError, SessionError, SettingsError
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.data.tensor_tasks import TensorTask, labelled_task, split_classes
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import (
    BranchBegan,
    Evaluated,
    StateChanged,
    Steps,
    TaskArrived,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.comparison import Outcome
from rehearsal_kit.session.left_out import left_out
from rehearsal_kit.session.replay import require_same_device
from rehearsal_kit.session.session import Session
from rehearsal_kit.session.tables import results_table

DEADLINE_S = 90
CLASSES = 4


class Own(Strategy):
    """A strategy of somebody's own."""


class OwnReplay(ER):
    """One that is made of ours."""


@dataclass(frozen=True)
class Run:
    """A finished session, what it was given and what it was tested on."""

    session: Session
    network: torch.nn.Module
    tasks: list[TensorTask]


@pytest.fixture(scope="module")
def cluster():
    with start_cluster("cpu", workers=2, idle_timeout_s=300) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def blobs(cluster, tmp_path_factory):
    """Two tasks of two classes, learned."""
    network, tasks = ConvNet(classes=CLASSES, width=4, seed=5), two_tasks()
    with session_on(cluster, tmp_path_factory.mktemp("blobs") / "run", network=network) as session:
        for task in tasks:
            session.submit(task)
        session.finish_stream()
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        yield Run(session, network, tasks)


@pytest.fixture(scope="module")
def scanned(cluster, tmp_path_factory):
    """One simulated scan, learned: the session and the file."""
    path = Beamline(folder=tmp_path_factory.mktemp("scans"), scans=1, seed=1).write(0)
    with Session(
        cluster,
        run=tmp_path_factory.mktemp("scanned") / "run",
        strategy=ER(),
        network=PtychoNN(size="small", seed=2),
        preparation=Preparation(size=32),
        training=Training(batch=16, epochs=1, scaling="none"),
        rehearsal=Rehearsal(representatives=4, candidates=4, capacity=40),
    ) as session:
        session.submit(path)
        session.finish_stream()
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        yield session, path


def labelled(samples: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy blobs, one place for each class: float32 (sample, 1, 8, 8) and labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % CLASSES
    images = random.normal(0, 0.7, (samples, 1, 8, 8)).astype(np.float32)
    for number, label in enumerate(labels):
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[number, 0, row : row + 4, column : column + 4] += 1
    return images, labels


def two_tasks() -> list[TensorTask]:
    return split_classes(*labelled(320, seed=0), classes_per_task=2, test=labelled(200, seed=1))


def spoilt_task(sample: int) -> TensorTask:
    """A task in which one training image has numbers so large that every network overflows."""
    images, labels = labelled(64, seed=2)
    images[sample] = 3e38
    return labelled_task("spoilt", (images, labels), test=labelled(40, seed=3))


def session_on(cluster, run: Path, *, network: torch.nn.Module | None = None, **settings) -> Session:
    values = {
        "strategy": ER(),
        "training": Training(batch=8, epochs=2, learning_rate=1e-2, scaling="none"),
        "rehearsal": Rehearsal(representatives=8, distillation=8, candidates=4, capacity=60, outputs=True),
    }
    return Session(
        cluster,
        run=run,
        network=network or ConvNet(classes=CLASSES, width=4, seed=5),
        **{**values, **settings},
    )


def acknowledged_by_all(session: Session, number: int):
    session.until(lambda session: len(session.acknowledged(number)) == session.ranks, timeout=DEADLINE_S)
    return session.acknowledged(number)


def run_onnx(path: Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    runtime = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in runtime.get_outputs()]
    return dict(zip(names, runtime.run(names, {runtime.get_inputs()[0].name: inputs}), strict=True))


# Tensors ------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_the_network_is_the_one_that_was_kept_and_a_copy(blobs):
    session, given = blobs.session, blobs.network
    network = session.network()
    kept = load_file(session.run.weights)
    assert set(network.state_dict()) == set(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())
    assert not network.training
    initial = load_file(session.run.initial_weights)
    for name, tensor in given.state_dict().items():  # of this process: it was never trained
        assert torch.equal(tensor, initial[name])
    assert any(not torch.equal(initial[name], kept[name]) for name in kept)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for other in (session.network(), given):
        assert all(parameter.abs().sum() > 0 for parameter in other.parameters() if parameter.dim() > 1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in session.network().state_dict().items())


@pytest.mark.cluster
def test_predict_is_the_network_on_inputs_of_any_number_type(blobs):
    inputs = labelled(600, seed=7)[0]
    predicted = blobs.session.predict(inputs)
    with torch.no_grad():
        expected = blobs.session.network()(torch.from_numpy(inputs))["label"].numpy()
    assert list(predicted) == ["label"]
    assert isinstance(predicted["label"], np.ndarray)
    assert predicted["label"].dtype == np.float32
    assert predicted["label"].shape == (600, CLASSES)
    np.testing.assert_allclose(predicted["label"], expected, rtol=0, atol=1e-5)
    for same in (inputs.astype(np.float64), torch.from_numpy(inputs)):
        np.testing.assert_array_equal(blobs.session.predict(same)["label"], predicted["label"])


@pytest.mark.cluster
def test_predict_reads_and_writes_by_blocks(blobs, tmp_path):
    inputs = labelled(600, seed=7)[0]
    predicted = blobs.session.predict(inputs)["label"]
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        frames = file.create_dataset("frames", data=inputs, chunks=(50, *inputs.shape[1:]))
        room = file.create_dataset("label", (600, CLASSES), "f4")
        assert blobs.session.predict(frames, out={"label": room})["label"] is room
        np.testing.assert_array_equal(room[:], predicted)
        for wrong in ({}, {"label": room, "other": room}, {"label": room[:599]}, {"label": frames}):
            with pytest.raises(SessionError, match=r"out has .* it must have .*\(600, 4\), 'float32'"):
                blobs.session.predict(frames, out=wrong)
        for poor in (5, room, [room], {"label": [0.0] * 600}):
            with pytest.raises(SettingsError, match=r"out is .*; it must be a dictionary .*'label': "):
                blobs.session.predict(frames, out=poor)
    np.testing.assert_array_equal(blobs.session.predict(inputs.tolist())["label"], predicted)


@pytest.mark.cluster
def test_the_table_is_what_the_network_does_on_the_test_samples(blobs):
    table, matrix = blobs.session.table(), blobs.session.timeline.error_matrix("test")
    assert table.index.name == "task"
    assert list(table.index) == [0, 1]
    assert list(table.columns) == [
        "name",
        "training samples",
        "error before",
        "error when learned",
        "error now",
        "change",
        "label top-1",
    ]
    assert list(table["name"]) == ["classes 0, 1", "classes 2, 3"]
    assert list(table["training samples"]) == [160, 160]
    for number, task in enumerate(blobs.tasks):
        chosen = blobs.session.predict(task.test["image"])["label"].argmax(1)
        right = float((chosen == task.test["label"].numpy()).mean())
        assert table.loc[number, "label top-1"] == pytest.approx(right)
        assert table.loc[number, "error now"] == pytest.approx(1 - right)
        assert table.loc[number, "error now"] == matrix[1][number]
        assert table.loc[number, "error when learned"] == matrix[number][number]
        assert table.loc[number, "change"] == pytest.approx(matrix[1][number] - matrix[number][number])
    assert table.loc[1, "change"] == 0
    before, untrained = blobs.session.timeline.untaught()
    assert list(table["error before"]) == before
    assert before[0] == untrained[0]
    assert table["error when learned"].max() < 0.3  # or it has learned nothing, and all of this says little


def test_numbers_that_are_not_there_yet_are_nan():
    arrived = TaskArrived(
        step=0, task=0, name="a", path="/a", training=8, watched=1, test=2, skipped=0, simulated=False
    )
    assert results_table(Timeline()).empty
    told = Evaluated(step=0, after=-1, task=0, split="test", errors={"label": 0.75})
    for timeline in (Timeline([arrived]), Timeline([arrived, told])):
        table = results_table(timeline)
        errors = table[["error when learned", "error now", "change"]]
        assert errors.isna().all(axis=None)
        assert all(dtype.kind == "f" for dtype in errors.dtypes)
    assert table.loc[0, "error before"] == 0.75


@pytest.mark.cluster
def test_before_a_task_has_ended_there_is_no_network(cluster, tmp_path):
    with session_on(cluster, tmp_path / "run") as session:
        for ask in (session.network, lambda: session.predict(labelled(4, seed=0)[0])):
            with pytest.raises(
                SessionError, match=r"run .*run has no trained weights yet: .*after every task"
            ):
                ask()
        with pytest.raises(SessionError, match="no trained weights yet"):
            session.export(tmp_path / "model.onnx")
        assert session.table().empty
        assert list(tmp_path.iterdir()) == [session.run.path]


@pytest.mark.cluster
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 8, 9), (3, 3, 8, 8), (0, 1, 8, 8), (1, 8, 8), (8,)])
def test_inputs_of_another_shape_are_refused(blobs, shape):
    with pytest.raises(SessionError, match=r"trained on image of \(sample, 1, 8, 8\)") as refused:
        blobs.session.predict(np.zeros(shape, np.float32))
    assert str(shape) in str(refused.value)


@pytest.mark.cluster
def test_the_export_of_a_classifier_predicts_the_same(blobs, tmp_path):
    pytest.importorskip("onnxscript")
    inputs = labelled(5, seed=8)[0]
    path = blobs.session.export(tmp_path / "model.onnx")
    assert path == tmp_path / "model.onnx"
    computed = run_onnx(path, inputs)
    assert list(computed) == ["label"]
    np.testing.assert_allclose(computed["label"], blobs.session.predict(inputs)["label"], rtol=0, atol=1e-4)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.cluster
def test_tensors_are_written_once_privately_into_the_run_folder(blobs):
    folder = blobs.session.run.path / "tasks"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["0000.h5", "0001.h5"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    arrived = blobs.session.timeline.records(TaskArrived)
    # By their place in the run folder, which may be moved.
    assert [record.path for record in arrived] == ["tasks/0000.h5", "tasks/0001.h5"]
    assert [Path(blobs.session.run.find(record.path)).parent for record in arrived] == [folder, folder]
    assert not any(record.simulated for record in arrived)


@pytest.mark.cluster
def test_a_task_that_comes_too_late_leaves_nothing_behind(blobs):
    before = sorted(blobs.session.run.path.rglob("*"))
    with pytest.raises(SessionError, match="too late: this run is finished"):
        blobs.session.submit(blobs.tasks[0])
    assert sorted(blobs.session.run.path.rglob("*")) == before


# Scans --------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_predict_takes_counts_as_the_detector_gives_them(scanned):
    session, path = scanned
    scan = open_scan(path)
    frames = scan.frames([0, 7, 200])
    assert frames.shape == (3, 64, 64)
    preparation = Preparation(size=32).fitted(scan)
    assert json.loads(session.run.inputs.read_text()) == {
        "field": "diffraction",
        "outputs": ["amplitude", "phase"],
        "shape": [64, 64],
        "dtype": "float32",
        "preparation": json.loads(json.dumps(asdict(preparation))),
    }
    with torch.no_grad():
        expected = session.network()(preparation.apply(frames))
    predicted = session.predict(frames)
    assert set(predicted) == {"amplitude", "phase"}
    for name, tensor in expected.items():
        assert predicted[name].shape == (3, 1, 32, 32)
        np.testing.assert_allclose(predicted[name], tensor.numpy(), rtol=0, atol=1e-5)
    for same in (frames.astype(np.uint16), torch.from_numpy(frames.astype(np.int32))):
        np.testing.assert_array_equal(session.predict(same)["phase"], predicted["phase"])
    with pytest.raises(SessionError, match=r"trained on diffraction of \(sample, 64, 64\)"):
        session.predict(preparation.apply(frames))


@pytest.mark.cluster
def test_the_export_of_a_scan_carries_its_preparation(scanned, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    session, path = scanned
    frames = open_scan(path).frames([3, 100]).astype(np.float32)
    model = session.export(tmp_path / "model.onnx")
    computed, predicted = run_onnx(model, frames), session.predict(frames)
    assert set(computed) == {"amplitude", "phase"}
    for name, array in computed.items():
        np.testing.assert_allclose(array, predicted[name], rtol=0, atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    kept = json.loads(session.run.inputs.read_text())["preparation"]
    assert json.loads(metadata["preparation"]) == kept
    assert kept["scale"] is not None
    table = session.table()
    assert list(table["name"]) == ["scan_0000"]
    assert {"amplitude MAE", "phase MAE", "phase SSIM"} <= set(table.columns)
    sums = table.loc[0, "amplitude MAE"] + table.loc[0, "phase MAE"]
    assert table.loc[0, "error now"] == pytest.approx(sums)


# Steering -----------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_a_run_of_another_device_is_not_replayed_for_its_bits(cluster, blobs, tmp_path):
    run = RunFolder(shutil.copytree(blobs.session.run.path, tmp_path / "run"))
    require_same_device(run, cluster, deterministic=True)
    # As if ranks had been started on another machine once.
    elsewhere = {"device": "cuda", "GPU": "of last week"}
    written(run, [Joined(rank=0, ranks=1, device="cuda:0", process=1, time=0.0, versions=elsewhere)])
    with pytest.raises(ReplayError, match=r"GPU of last week then, none now.*--any-versions"):
        require_same_device(run, cluster, deterministic=True)


def test_a_run_is_switched_to_another_strategy_on_all_ranks_at_one_step(cluster, tmp_path):
    with session_on(
        cluster, tmp_path / "run", training=Training(batch=8, epochs=500, scaling="none")
    ) as session:
        wishes = session.run.wishes
        session.submit(two_tasks()[0])
        session.start()
        session.until(lambda session: session.timeline.records(Steps), timeout=DEADLINE_S)
        lines = len(wishes.read_text().splitlines())
        for strategy in (Own(), OwnReplay()):
            with pytest.raises(SettingsError, match=r"switched to Incremental, .*\bER\b.*DERpp"):
                session.steer(strategy=strategy)
        assert len(wishes.read_text().splitlines()) == lines
        refused = acknowledged_by_all(session, session.steer(capacity=2**40))
        assert all(record.refused for record in refused)
        assert not Outcome.of("ER", session.timeline).steered
        assert refused[0].settings["strategy"] == "ER"
        first, second = acknowledged_by_all(session, session.steer(strategy=DERpp(alpha=0.25, beta=0.75)))
        assert (first.rank, second.rank) == (0, 1)
        assert first.step == second.step
        assert first.digest == second.digest != refused[0].digest
        assert first.refused == second.refused == ""
        for record in (first, second):
            assert record.settings["strategy"] == "DERpp"
            assert (record.settings["alpha"], record.settings["beta"]) == (0.25, 0.75)
        session.until(lambda session: session.timeline.last(Steps).distilled > 0, timeout=DEADLINE_S)
        before = [s for s in session.timeline.records(Steps) if s.first + len(s.losses) <= first.step]
        assert before
        assert not any(record.distilled for record in before)
        assert Outcome.of("ER", session.timeline).steered
        session.stop()
        assert session.wait(DEADLINE_S) == "stopped"
    assert session.network().state_dict().keys()  # kept though no task has ended


# Trouble ------------------------------------------------------------------------------------------------


def in_trouble(session: Session) -> None:
    """Learn one task, and run into the other."""
    session.submit(two_tasks()[0])
    session.submit(spoilt_task(17))
    session.finish_stream()
    session.start()
    session.until(lambda session: session.trouble, timeout=DEADLINE_S)


@pytest.mark.cluster
def test_a_loss_of_nan_pauses_the_run_says_where_and_costs_nothing(cluster, tmp_path):
    with session_on(cluster, tmp_path / "run") as session:
        in_trouble(session)
        learned = session.timeline.records(TaskEnded)[0]
        kept = load_file(session.run.weights)
        said = re.match(
            r"task 1 \(spoilt\), step (\d+), rank ([01]): the loss became NaN\. ", session.trouble
        )
        assert said, session.trouble
        assert int(said[1]) >= learned.step
        assert "lower the learning rate (0.01) and resume, or stop" in session.trouble
        assert session.timeline.last(StateChanged).state == session.state == "paused"
        with pytest.raises(RankError, match=re.escape(session.trouble)):
            session.wait(DEADLINE_S)
        with pytest.raises(RankError, match=re.escape(session.trouble)):
            asyncio.run(session.done())
        assert session.state == "paused"
        assert not session.over
        assert session.error == ""
        assert session.predict(labelled(4, seed=0)[0])["label"].shape == (4, CLASSES)
        assert list(session.table()["error now"].notna()) == [True, False]
        # The sample is as bad as before, so the same happens again, later and on the same rank.
        first, steered = session.trouble, session.steer(learning_rate=1e-3)
        session.resume()
        acknowledged_by_all(session, steered)
        session.until(lambda session: session.trouble not in ("", first), timeout=DEADLINE_S)
        again = re.match(r"task 1 \(spoilt\), step (\d+), rank ([01]): ", session.trouble)
        assert int(again[1]) > int(said[1])
        assert again[2] == said[2]
        assert "(0.001)" in session.trouble
        session.stop()
        session.until(lambda session: session.over or session.state != "paused", timeout=DEADLINE_S)
        assert session.wait(DEADLINE_S) == "stopped"
        assert session.trouble == ""
    last = load_file(session.run.weights)
    assert all(torch.equal(last[name], tensor) for name, tensor in kept.items())
    losses = session.timeline.losses()[1]
    assert np.isfinite(losses).all()


@pytest.mark.cluster
def test_after_a_stop_nobody_is_told_of_the_old_trouble(cluster, tmp_path):
    with session_on(cluster, tmp_path / "run") as session:
        in_trouble(session)
        session.stop()
        assert asyncio.run(session.done()) == "stopped"


@pytest.mark.cluster
def test_a_session_in_trouble_can_be_closed(cluster, tmp_path):
    with session_on(cluster, tmp_path / "run") as session:
        in_trouble(session)
    assert session.state == "stopped"
    assert session.error == ""
    assert not list(session.run.path.glob("rendezvous*"))


def test_a_task_that_another_branch_trains_after_all_is_not_told_as_left_out():
    """It was counted among the files that had been refused when they arrived, and warned of at the end."""
    arrived = TaskArrived(
        step=0, task=0, name="a", path="/a", training=4, watched=1, test=1, skipped=0, simulated=False
    )
    lost = TaskSetAside(step=1, name="a", path="/a", reason="gone on rank 1", task=0)
    refused = TaskSetAside(step=1, name="b", path="/b", reason="torn")
    again = BranchBegan(branch=1, step=0, checkpoint=0, parent=0, left=1, time=0.0, tasks=1)
    timeline = Timeline([arrived, lost, refused])
    assert left_out(timeline) == "2 tasks were set aside: a: gone on rank 1; b: torn."
    timeline.append(again)
    assert left_out(timeline) == "1 task was set aside: b: torn."
    assert results_table(timeline)["set aside"].tolist() == ["", "torn"]
