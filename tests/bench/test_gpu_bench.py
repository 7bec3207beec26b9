"""`bench gpu` on a machine without a GPU: all but what only CUDA can execute."""

from __future__ import annotations

import json
import math
import signal
import threading
import warnings
from dataclasses import replace

import pytest
import torch

from rehearsal_kit.base.errors import RehearsalKitError, SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.bench.gpu.attainable import Attainable, _step_of, attainable
from rehearsal_kit.bench.gpu.case_measurement import CaseMeasurement, lay_out
from rehearsal_kit.bench.gpu.cases import CASES, FULL, QUICK, QUICK_CASES
from rehearsal_kit.bench.gpu.driven_rank import DrivenRank
from rehearsal_kit.bench.gpu.figures import EVALUATION_S, ONLY_CUDA, Figure, figures
from rehearsal_kit.bench.gpu.findings import CaseFindings, Counted, Memory, RankFindings
from rehearsal_kit.bench.gpu.gpu_bench import Options, devices_of, measured
from rehearsal_kit.bench.gpu.synchronisations import heard
from rehearsal_kit.bench.machine import Machine
from rehearsal_kit.bench.ranks.exchange_ranks import RankTimes
from rehearsal_kit.bench.spread import MedianInterval
from rehearsal_kit.bench.table import Table
from rehearsal_kit.cli.main import main
from rehearsal_kit.cluster.gpus import Gpu, Gpus
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.commands import Pause, TakeCheckpoint

pytestmark = pytest.mark.timeout(240)  # a measurement that does not end is a fault
ALONE = ProcessGroups(0, 1)
CASE = QUICK_CASES[0]
EXCHANGED = RankTimes(header_s=[], gather_s=[], all_to_all_s=[], job_s=[0.002] * 6, from_others=[])
SYNCHRONISED = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:143.)"


@pytest.fixture(autouse=True)
def own_signals():
    """The command line sets a handler for the whole process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# The command ----------------------------------------------------------------------------------------------


def test_on_a_cpu_all_is_measured_but_what_only_a_gpu_has(tmp_path, capsys):
    file = tmp_path / "found.json"
    words = ["bench", "gpu", "--device", "cpu", "--quick", "--markdown", "--json", str(file)]
    assert main(words) == 0
    data, said = json.loads(file.read_text())["gpu"], capsys.readouterr()
    assert "measuring PtychoNN small, 16 x 16 and ResNet-18" in said.err
    assert [case["case"] for case in data["cases"]] == [case.subject.name for case in QUICK_CASES]
    for case, found in zip(QUICK_CASES, data["cases"], strict=True):
        of_name = {each["name"]: each for each in found["figures"]}
        left_out = {name for name, each in of_name.items() if each["low_median_high"] is None}
        assert left_out == {name for name in of_name if only_on_a_gpu(name)}
        measured_here = [each["low_median_high"][1] for name, each in of_name.items() if name not in left_out]
        assert all(map(math.isfinite, measured_here))
        assert of_name["with / without"]["limit"] == case.limit
        assert of_name["with / without"]["verdict"] == "not resolved"  # two blocks resolve nothing
        (rank,) = found["by_rank"]
        assert {len(each) for each in rank["blocks"].values()} == {QUICK.rounds}
        assert rank["rows"] == case.rows
        assert list(rank["counted"]) == [strategy.name for strategy in case.strategies]
        assert len(rank["written"]) == QUICK.checkpoints + 1  # one more where the session was stopped
    assert said.out.count(ONLY_CUDA) == 1 + sum(map(only_on_a_gpu, names_of(data)))
    assert "| with / without |" in said.out


def only_on_a_gpu(name: str) -> bool:
    words = ("CUDA graph", "fastest algorithms", "synchronisations", "activations", "device memory")
    words += ("rehearsal, buffer in host memory",)
    return any(word in name for word in words)


def names_of(data: dict) -> list[str]:
    return [figure["name"] for case in data["cases"] for figure in case["figures"]]


@pytest.mark.parametrize(
    ("options", "gpus", "said"),
    [
        (
            {},
            Gpus(lack="this torch is built for the CPU", cure="install X"),
            "the CPU; install X. `",
        ),
        (
            {},
            Gpus(lack="this machine shows no NVIDIA device"),
            "NVIDIA device. `rehearsal-kit bench",
        ),
        ({"ranks": 3}, Gpus(usable=(Gpu(visible="0", name="A"),)), "is 3, but 1 GPUs here can be used"),
        ({"ranks": 0}, Gpus(), "ranks is 0"),
        ({"device": "cpu"}, Gpus(), "came without --quick"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_cure(options, gpus, said):
    wanted = Options(**{"ranks": 1, "device": "cuda", "quick": False, **options})
    with pytest.raises(SettingsError) as refused:
        devices_of(wanted, lambda: gpus)
    assert said in str(refused.value)


def test_every_rank_has_a_gpu_of_its_own():
    gpus = Gpus(usable=(Gpu(visible="0", name="A"), Gpu(visible="1", name="A")))
    assert devices_of(Options(ranks=2, device="cuda", quick=False), lambda: gpus) == ("cuda:0", "cuda:1")


def test_mini_batches_of_both_kinds_are_whole_and_intervals_are_known():
    for case in (*CASES, *QUICK_CASES):
        assert case.shard % case.batch == case.shard % case.rows == 0
    assert all(4 * case.capacity <= case.shard for case in CASES)
    assert math.isfinite(MedianInterval.of([1.0] * FULL.rounds).high)
    assert math.isfinite(MedianInterval.of([1.0] * FULL.checkpoints).high)
    assert FULL.steps >= 25
    assert [case.evaluated for case in CASES] == [0, 1000, 0]


# Figures as on a GPU --------------------------------------------------------------------------------------


def found_on_a_gpu(**changes) -> CaseFindings:
    card = Attainable([0.0060] * 6, [0.0050] * 6, parameters=10, weight_bytes=2**20, activation_bytes=2**21)
    values = {
        "blocks": {
            "with": [0.0054] * 6,
            "without": [0.00535] * 6,
            "fastest": [0.0050] * 6,
            "from host memory": [0.0056] * 6,
        },
        "waited_s": 0.00001,
        "rows": CASE.rows,
        "repeatable": card,
        "fastest": card,
        "counted": {
            "ER": Counted(steps=5, here={}, elsewhere={"staging.py:5": 5}),
            "AGEM": Counted(steps=5, here={"joint_step.py:1": 10}, elsewhere={}),
        },
        "memory": Memory(peak=6 * 2**20, before=2**20),
        "buffer_there": True,
        "checkpoints": [0.02, 0.03, 0.04, 0.04, 0.045, 0.06],
        "checkpoint_bytes": 3 * 2**20,
        "written": [0.5],
        "evaluations": [2.5],
    }
    return CaseFindings(**{**values, **changes})


def verdicts(found: CaseFindings, **changes) -> dict[str, str]:
    case = replace(CASE, stall_limit_s=0.05)
    return {each.name: each.verdict for each in figures(case, [found_on_a_gpu(**changes)], device="cuda")}


def test_every_limit_is_judged_on_a_gpu():
    assert verdicts(found_on_a_gpu()) == {
        "step with rehearsal": "",
        "step without, of as many samples (8)": "",
        "with / without": "within",  # 1.009 of 1.02
        "waited for the background job": "within",  # 0.185 % of 0.2
        "step with rehearsal, buffer in host memory": "",
        "with the same bits / by the fastest algorithms": "within",
        "attainable, kernel by kernel (same bits)": "",
        "attainable, as CUDA graph (same bits)": "",
        "step / CUDA graph (same bits)": "within",  # 1.08 of 1.1
        "attainable, kernel by kernel (fastest)": "",
        "attainable, as CUDA graph (fastest)": "",
        "step / CUDA graph (fastest)": "within",
        "synchronisations in a step of ER": "within",  # another thread may wait
        "synchronisations in a step of AGEM": "above",
        "weights": "",
        "activations of such a step": "",
        "buffer of a rank, on the device": "",
        "shard of a rank, on the device": "",
        "peak of device memory": "within",  # 6 MiB of 1.1 * (4 * 1 + 2), and a little for the shard
        "device memory between two steps": "",
        "a checkpoint of 3 MiB holds training up": "not resolved",
        "until it is on disk": "",
        "evaluation of 6 samples": "above",
    }


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"waited_s": 0.00002}, "waited for the background job", "above"),
        ({"memory": Memory(peak=7 * 2**20, before=0)}, "peak of device memory", "above"),
        ({"buffer_there": False}, "buffer of a rank, in host memory", ""),
        ({"checkpoints": [0.051] * 6}, "a checkpoint of 3 MiB holds training up", "above"),
        ({"evaluations": [EVALUATION_S]}, "evaluation of 6 samples", "within"),
    ],
)
def test_a_figure_beyond_its_limit_is_told(changes, name, verdict):
    assert verdicts(found_on_a_gpu(), **changes)[name] == verdict


def test_the_slowest_rank_counts_and_lines_that_wait_are_told():
    slow = {**found_on_a_gpu().blocks, "with": [0.0075] * 6, "without": [0.005] * 6, "fastest": [0.005] * 6}
    ranks = [
        RankFindings(
            cases=(
                found_on_a_gpu(
                    blocks=blocks, sums=[0.001] * 6, exchange=EXCHANGED, exchange_there=[0.0004] * 6
                ),
            ),
            copies={"host to device, pinned": [2.5e10] * 6},
            versions={"device": "cuda", "GPU": "a card", "driver": "580.1", "CUDA": "13.0"},
        )
        for blocks in (found_on_a_gpu().blocks, slow)
    ]
    options = Options(ranks=2, device="cuda", quick=False)
    whole = measured([CASE], [ranks], options=options, machine=Machine.here())
    said = " ".join(whole.text().split())
    assert "with / without 1.402 - 1.02 above" in said  # 7.5 of one rank by 5.35 of the other
    assert "joint_step.py:1 AGEM training 2" in said
    assert "staging.py:5 ER another thread 1" in said
    assert "GPU a card driver 580.1 CUDA 13.0" in said
    assert "sum of the gradients over the ranks, alone, ms 1" in said
    assert "background job with an exchange between hosts, alone, ms 2" in said
    assert "exchange between devices, alone, ms 0.4" in said
    assert "host to device, pinned 25.0" in said
    assert "left out" not in said
    with pytest.raises(RehearsalKitError, match="instead of 8"):
        measured(
            [CASE],
            [[replace(ranks[0], cases=(found_on_a_gpu(rows=7.5),))]],
            options=options,
            machine=Machine.here(),
        )


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.9] * 6, "within"),
        ([1.1] * 6, "above"),
        ([0.9] * 3 + [1.1] * 3, "not resolved"),
        ([0.9], "not resolved"),
    ],
)
def test_a_verdict_looks_at_the_whole_interval(values, verdict):
    figure = Figure(name="f", value=MedianInterval.of(values), limit=1.0)
    assert figure.verdict == verdict
    json.dumps(figure.data(), allow_nan=False)


def test_the_interval_of_a_median_is_of_order_statistics():
    values = [float(n) for n in range(1, 17)]
    assert MedianInterval.of(values) == MedianInterval(4.0, 8.5, 13.0)  # 97.9 % of samples of a median
    assert MedianInterval.of(values[:6]) == MedianInterval(1.0, 3.5, 6.0)
    assert MedianInterval.of(values[:5]) == MedianInterval(-math.inf, 3.0, math.inf)
    assert MedianInterval(2, 4, 8).over(MedianInterval(1, 2, 4)) == MedianInterval(0.5, 2, 8)


def test_a_table_of_markdown_fills_lines_that_are_remarks():
    table = Table("title", ("name", "x", "y"), (("a", "1", "2"), ("b", "left out")), ("a", "note"))
    assert table.markdown().split("\n\n") == [
        "**title**",
        "| name | x | y |\n| --- | ---: | ---: |\n| a | 1 | 2 |\n| b | left out |  |",
        "a note",
    ]


# Its parts ------------------------------------------------------------------------------------------------


def test_synchronisations_are_counted_by_line_and_thread():
    def waits():
        warnings.warn(SYNCHRONISED, stacklevel=1)

    before = warnings.showwarning
    with heard("cpu") as found:
        waits()
        waits()
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        other = threading.Thread(target=waits)
        other.start()
        other.join()
    (line,) = found.here
    assert line.startswith("test_gpu_bench.py:")
    assert (found.here[line], found.elsewhere[line]) == (2, 1)
    assert warnings.showwarning is before


def measurement(folder, case=CASE) -> CaseMeasurement:
    made = CaseMeasurement(case=case, effort=QUICK, groups=ALONE, device="cpu", folder=folder / "case")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lay_out(case, made.folder, ranks=1)
    return made


def test_sessions_in_turns_train_as_each_of_them_alone(tmp_path):
    """Each has the numbers that it has alone, and buffers are full when they are measured."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    alone = measurement(tmp_path / "one").session(ER())
    alone.step(3)
    alone.end()
    other = measurement(tmp_path / "other")
    session, beside = other.session(ER()), other.session(Incremental())
    since = session.taken
    for _ in range(3):
        beside.step()
        session.step()
    for each in (session, beside):
        each.end()
    assert losses(session) == losses(alone)
    assert losses(beside) != losses(alone)
    assert {each.stored for each in session.told(since)} == {CASE.capacity}
    assert {each.stored for each in beside.told(0)} == {0}


def losses(session: DrivenRank) -> list[float]:
    return [loss for steps in session.told(0) for loss in steps.losses]


def test_what_fails_in_a_session_is_not_taken_for_what_costs_nothing(tmp_path):
    one = measurement(tmp_path)
    one.task.write_bytes(b"no task")
    with pytest.raises(RehearsalKitError, match="what was to be measured has failed"):
        one.session(ER())


def test_a_session_that_waits_is_not_measured(tmp_path):
    session = measurement(tmp_path).session(ER())
    session.ask(Pause())
    with pytest.raises(RehearsalKitError, match="it waits"):
        session.step(2)
    session.end()


def test_a_checkpoint_is_on_disk_before_the_next_is_measured(tmp_path):
    session = measurement(tmp_path).session(ER())
    for _ in range(2):
        session.ask(TakeCheckpoint())
        session.step()
    session.settle()
    assert len(session.kept) == 2
    session.end()
    with pytest.raises(RehearsalKitError, match="has ended at step"):
        session.step()


def test_what_the_card_can_do_is_a_whole_step_of_the_same_network(tmp_path):
    """Without bfloat16 and graph, as on a CPU: the weights change, and nothing of a GPU is told."""
    step, network = _step_of(CASE, "cpu")
    before = [p.detach().clone() for p in network.parameters()]
    step()
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    found = attainable(CASE, "cpu", QUICK, deterministic=True)
    assert (found.graph_s, found.activation_bytes) == ([], None)
    assert found.weight_bytes == 4 * found.parameters == 4 * sum(p.numel() for p in before)
