"""The measurements measure what they say; how long anything takes is none of the tests' business."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.processes import words
from rehearsal_kit.base.settings import POLICIES
from rehearsal_kit.bench.ranks.exchange_ranks import Rows, measure_exchange
from rehearsal_kit.bench.ranks.plan_costs import RANKS, REPRESENTATIVES
from rehearsal_kit.bench.ranks.step_costs import StepCost
from rehearsal_kit.bench.ranks.step_ranks import RankSteps, Trial, measure_steps
from rehearsal_kit.bench.ranks.strategy_costs import strategy_costs
from rehearsal_kit.bench.ranks.strategy_ranks import Turns, measure_turns, measured_on
from rehearsal_kit.bench.ranks.subjects import Ptychography, ResNet18
from rehearsal_kit.bench.ranks.thread_costs import SETTINGS
from rehearsal_kit.bench.run.undisturbed import QUICK
from rehearsal_kit.bench.run.undisturbed_ranks import (
    ARRIVAL,
    CHECKPOINT,
    NOTHING,
    PREVIEWS,
    PROGRAM,
    ROUND,
)
from rehearsal_kit.bench.spread import Interval, Spread
from rehearsal_kit.bench.store import beside_others
from rehearsal_kit.bench.store.floor import Floor
from rehearsal_kit.bench.store.ours import OurStore
from rehearsal_kit.bench.store.workload import TaskStream, Workload
from rehearsal_kit.bench.table import Table
from rehearsal_kit.cli.main import main
from rehearsal_kit.compare.streams import stream_named
from rehearsal_kit.learning.strategies.choice import OURS

pytestmark = pytest.mark.timeout(120)  # a measurement that does not end is a fault, and is known by then
SMALL = Workload(capacity=200, fields=(("values", (4,)), ("more", (2, 2))))


@pytest.fixture(autouse=True)
def own_signals():
    """The command line sets a handler for the whole process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def bench(tmp_path, capsys, *arguments: str) -> tuple[dict, str]:
    file = tmp_path / "found.json"
    assert main(["bench", *arguments, "--quick", "--json", str(file)]) == 0
    return json.loads(file.read_text()), capsys.readouterr().out


def positive(*numbers: float) -> bool:
    return all(math.isfinite(number) and number > 0 for number in numbers)


# The commands ---------------------------------------------------------------------------------------------


def test_threads(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "threads")
    assert [each["copied"] for each in data["threads"]] == [True, False]
    assert positive(*(each[thread] for each in data["threads"] for thread in ("training", "background")))
    assert [each["stored"] for each in data["threads"]] == [SETTINGS.capacity] * 2  # full, as it is said
    assert "lent, as in a session" in said


def test_reading(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "reading")
    found = data["reading"]
    assert (found["frames"], len(found["plain_s"]), len(found["ours_s"])) == (20, 2, 2)
    assert positive(*found["plain_s"], *found["ours_s"], found["ratio"]["median"])
    assert "20 frames of 514 x 1030 uint16, cut to 256 x 256" in said


def test_history(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "history")
    assert [each["run"] for each in data["history"]] == [{"steps": n, "tasks": 6} for n in (50, 100)]
    for found in data["history"]:
        times = ("attach_s", "state_us", "push_ms", "push_p95_ms", "table_s", "condense_s", "restart_s")
        assert positive(*(found[name] for name in times))
        assert found["holds"] == (found["attach_s"] < 3 and found["push_ms"] < 20)
    assert "attach < 3 s, push < 20 ms" in said


def test_buffer(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "buffer")
    entries = beside_others.entries()
    assert [c["name"] for c in data["contestants"]] == [entry.name for entry in entries]
    for entry, found in zip(entries, data["contestants"], strict=True):
        assert entry.name in said
        assert bool(found["missing"]) == (not found["phases"])
        if entry.module and importlib.util.find_spec(entry.module) is None:
            assert entry.module in found["missing"]
            assert f"missing: pip install 'rehearsal-kit[{entry.extra}]'" in said
        elif not entry.extra:
            assert not found["missing"]
        for phase in found["phases"].values():
            assert positive(*phase["cpu_us"], *phase["reference_us"], *phase["ratio"].values())
            assert len(phase["cpu_us"]) == len(phase["reference_us"]) == 3
    whole = next(c for c in data["contestants"] if "whole" in c["name"])
    assert list(whole["phases"]) == ["both"]
    assert " CPUs (" in said
    growing(data["growth"])


def growing(found: list[dict]) -> None:
    assert [one["policy"] for one in found] == list(POLICIES)
    for one in found:
        assert abs(one["resident"]["ratio"] - 1) < 0.05
        assert one["resident"]["before"] > 2**20
        for growth_of in (one["stream"], one["capacity"]):
            assert growth_of["ratio"][0] == 1
            assert positive(*growth_of["ratio"], *(number for line in growth_of["cpu_us"] for number in line))
            assert all(len(line) == len(growth_of["sizes"]) for line in growth_of["cpu_us"])


def test_exchange(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "exchange")
    assert [(p["representatives"], p["ranks"]) for p in data["plan"]] == [
        (r, n) for r in REPRESENTATIVES for n in RANKS
    ]
    assert {8, 1024} <= set(RANKS)
    assert all(positive(p["median_cpu_us"], *p["ratio"].values()) for p in data["plan"])
    (cost,) = data["exchange"]
    assert cost["row_bytes"] == 4 * 3 * 224 * 224 + 8
    assert len(cost["by_rank"]) == cost["ranks"] == 2
    for rank in cost["by_rank"]:
        assert {len(values) for values in rank.values()} == {3}
        assert positive(*rank["header_s"], *rank["gather_s"], *rank["all_to_all_s"], *rank["job_s"])
        assert all(count % cost["row_bytes"] == 0 for count in rank["from_others"])
        assert sum(rank["from_others"]) <= 3 * 7 * cost["row_bytes"]
    for word in ("header us", "all-to-all ms", "MB/s", "plan / integers", "load average"):
        assert word in said


def test_step(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "step", "--ranks", "2")
    (step,) = data["steps"]
    assert (step["batch"], step["representatives"], step["candidates"]) == (56, 7, 14)
    assert len(step["by_rank"]) == len(step["devices"]) == 2
    for rank in step["by_rank"]:
        assert len(rank["with_s"]) == len(rank["without_s"]) == len(rank["waited_s"]) == step["pairs"] == 3
        assert all(waited < whole for waited, whole in zip(rank["waited_s"], rank["with_s"], strict=True))
    difference = step["difference"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert positive(step["worked_s"], step["median_with_s"], step["median_without_s"])
    assert 0 <= step["waited_share"] < 1
    assert step["verdict"] in ("within 2%", "above 2%", "not resolved")
    assert step["verdict"] in said


def test_steering(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "steering")
    latency = data["steering"]
    assert latency["ranks"] == 2
    assert len(latency["seconds"]) == 5
    assert positive(latency["step_s"], *latency["seconds"])
    assert "click to effect" in said


def test_checkpoint(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "checkpoint")
    (cost,) = data["checkpoints"]
    assert len(cost["with_s"]) == len(cost["without_s"]) == len(cost["written_s"]) - 1 == 2
    assert positive(cost["bytes"], *cost["with_s"], *cost["without_s"], *cost["written_s"])
    assert "at one a minute" in said
    # The first step of a window with one is a part of that window, and longer than usual by so much at most.
    assert all(held < window for held, window in zip(cost["held_s"], cost["with_s"], strict=True))


def test_undisturbed(tmp_path, capsys):
    data, said = bench(tmp_path, capsys, "undisturbed")
    found = data["undisturbed"]
    assert [block["disturbance"] for block in found["blocks"]] == [*ROUND * QUICK.rounds, NOTHING]
    assert all(positive(block["seconds"]) and block["steps"] >= QUICK.steps for block in found["blocks"])
    assert found["arriving_bytes"] == QUICK.arriving_bytes
    assert found["checkpoint_bytes"] > 2 * QUICK.stored * 3 * 4 * QUICK.side**2  # both buffers were full
    assert list(found["ratios"]) == [ARRIVAL, PROGRAM, PREVIEWS, CHECKPOINT]
    for ratio in found["ratios"].values():
        assert len(ratio["blocks"]) == QUICK.rounds
        assert ratio["low"] <= ratio["mean"] <= ratio["high"]
        assert ratio["verdict"] in ("at least 0.98", "below 0.98", "not resolved")
        assert ratio["verdict"] in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["step", "--ranks", "0"], "ranks is 0"),
        (["step", "--pairs", "1"], "pairs is 1"),
        (["step", "--device", "cuda", "--ranks", "99"], "99, but there are"),
        (["buffer", "--json", "/no/such/folder/x.json"], "its folder does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(capsys, arguments, said):
    assert main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_interrupted_it_leaves_no_process(tmp_path):
    """Ctrl-C in a terminal reaches the whole process group."""
    command = subprocess.Popen(
        [sys.executable, "-m", "rehearsal_kit.cli", "bench", "step"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    ranks = wait_for_children(psutil.Process(command.pid))
    os.killpg(command.pid, signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130, said
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    assert not list(tmp_path.glob("rehearsal-bench-*"))


def wait_for_children(process: psutil.Process) -> list[psutil.Process]:
    """The fork server and two ranks that have met: from then on these would train for a minute."""
    while True:
        servers = [p for p in process.children() if "forkserver" in " ".join(words(p))]
        ranks = [p for server in servers for p in server.children()]
        if len(ranks) == 2 and all(p.cpu_times().user > 1 for p in ranks):
            return servers + ranks
        time.sleep(0.1)


# Its parts ------------------------------------------------------------------------------------------------


def test_the_floor_accepts_with_the_probability_of_a_reservoir():
    workload = Workload(capacity=50, fields=(("values", (1,)),), batch=10)
    floor = Floor(workload, seen=450, everything=True)
    store, changed = floor._stores["values"], 0
    for _ in range(400):
        before = store.clone()
        floor.update()
        floor.reset()
        changed += int((store != before).sum())
    # 400 times 10 samples, each kept with probability 50 / 455.5: 439, standard deviation 20.
    assert abs(changed - 439) < 100
    assert floor.draw()["values"].shape == (7, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_local_store_is_full_and_draws_what_was_offered(policy):
    store = OurStore(SMALL, policy).fill()
    assert store.held == SMALL.capacity
    drawn = store.see(500).draw()
    assert drawn["values"].shape == (SMALL.representatives, 4)
    assert drawn["more"].shape == (SMALL.representatives, 2, 2)


def test_a_reservoir_goes_back_to_full():
    store = OurStore(SMALL, "reservoir").fill().keep()
    store.see(2000)
    assert store._store.policy.threshold < 2**63 - 1
    store.go_back()
    assert store.held == SMALL.capacity
    assert store._store.policy.threshold == 2**63 - 1
    store.update()  # with samples that never came before


def test_a_stream_never_repeats_a_sample_id():
    stream = TaskStream(SMALL, identified=True)
    seen = torch.cat([stream.next()["sample_id"], stream.next(3)["sample_id"], stream.next()["sample_id"]])
    assert seen.tolist() == list(range(2 * SMALL.batch + 3))


def test_a_peer_that_cannot_be_imported_is_missing_and_ours_is_an_error():
    def broken(workload: Workload) -> None:
        raise ImportError("half installed")

    effort = beside_others.Effort(rounds=1, steps=1)
    peer = beside_others.Entry(name="peer", build=broken, extra="bench")
    assert beside_others.measure(peer, SMALL, effort).missing == "half installed"
    ours = beside_others.Entry(name="ours", build=broken)
    with pytest.raises(ImportError):
        beside_others.measure(ours, SMALL, effort)


def test_a_rank_alone_receives_nothing_from_others():
    rows = Rows(name="tiny", image=(1, 4, 4), batch=8, candidates=4, representatives=3, capacity=20)
    times = measure_exchange(ProcessGroups(0, 1), rows, 5)
    assert times.from_others == [0] * 5
    assert len(times.job_s) == 5
    assert positive(*times.job_s)


def trial(**changes) -> Trial:
    values = {
        "batch": 4,
        "representatives": 3,
        "candidates": 2,
        "capacity": 20,
        "pairs": 4,
        "warm_up": 1,
        "least_s": 0.0,
        "subjects": (Ptychography("small", 8),),
        "devices": ("cpu",),
    }
    return Trial(**{**values, **changes})


def test_the_last_subject_is_trained_when_none_is_slow_enough():
    subjects = (Ptychography("small", 8), Ptychography("small", 12))
    found = measure_steps(ProcessGroups(0, 1), trial(subjects=subjects, least_s=1e9))
    assert found.subject == "PtychoNN small, 12 x 12"
    assert measure_steps(ProcessGroups(0, 1), trial(subjects=subjects)).subject == "PtychoNN small, 8 x 8"


def test_resnet_is_trained_on_labelled_images():
    found = measure_steps(ProcessGroups(0, 1), trial(subjects=(ResNet18(32),)))
    assert found.subject == "ResNet-18, 3 x 32 x 32"
    assert positive(*found.with_s, *found.without_s)


@pytest.mark.parametrize(
    ("with_s", "verdict"),
    [
        ([1.000, 1.004, 0.998, 1.002], "within 2%"),
        ([1.050, 1.054, 1.048, 1.052], "above 2%"),
        ([0.900, 1.100, 1.200, 0.900], "not resolved"),
    ],
)
def test_the_verdict_looks_at_the_whole_interval(with_s, verdict):
    slow = RankSteps("net", 8, with_s=with_s, waited_s=[0.1] * 4, without_s=[1.0] * 4, worked_s=2.0)
    fast = RankSteps("net", 8, with_s=[0.5] * 4, waited_s=[0.0] * 4, without_s=[0.5] * 4, worked_s=2.0)
    cost = StepCost(trial(), (slow, fast))
    assert cost.with_s == with_s
    assert cost.verdict == verdict
    assert cost.hidden_s == pytest.approx(0.5 - 0.05)


def test_steps_of_all_strategies_in_turns():
    turns = Turns("fashion", rounds=3, warm_up=1, capacity=200)
    (cost, *others) = strategy_costs(turns, [measure_turns(ProcessGroups(0, 1), turns)])
    assert (cost.arm.name, cost.ratio.median, cost.rows) == ("Incremental", 1.0, 1.0)
    rows = {other.arm.name: other.rows for other in others}
    assert {
        "ER": 1.5,
        "AGEM": 1.5,
        "DER": 1.5,
        "DERpp": 1.5,
        "MeanER": 1.5,
        "CLSER": 1.5,
    }.items() <= rows.items()
    # These take Incremental's step.
    assert {"Incremental", *rows} == {kind.__name__ for kind in OURS} - {"FromScratch", "Cumulative"}
    assert all(positive(*other.seconds) for other in others)


def test_steps_of_strategies_with_settings():
    arms = ("er:r=16,balance=tasks", "derpp:r=8,rd=8,draws=2", "meaner:r=16,average=0.9")
    turns = Turns("fashion", rounds=1, warm_up=0, capacity=200, arms=arms)
    costs = strategy_costs(turns, [measure_turns(ProcessGroups(0, 1), turns)])
    assert {cost.arm.name: cost.rows for cost in costs} == {
        "Incremental": 1.0,
        "ER balance=tasks r=16": 1.125,
        "DERpp rd=8 draws=2 r=8": 1.125,
        "MeanER average=0.9 r=16": 1.125,
    }


def test_more_than_the_buffer_holds_is_refused_before_anything_is_measured(capsys):
    assert main(["bench", "strategies", "--quick", "--streams", "fashion", "--strategies", "er:r=300"]) == 1
    said = capsys.readouterr().err
    assert "'ER r=300' draws r=300 and rd=0" in said
    assert "its buffer holds 200 here" in said
    assert "measuring" not in said


def test_strategies_for_classes_are_not_measured_on_scans():
    on_classes, on_scans = (measured_on(stream_named(name)) for name in ("fashion", "beamline"))
    assert set(on_classes) - set(on_scans) == {"ERACE", "DERppACE", "CLSER"}


@pytest.mark.parametrize(("seconds", "verdict"), [(1.57, "within"), (1.58, "above")])
def test_a_strategy_may_cost_its_rows_and_a_twentieth(seconds, verdict):
    turns = Turns("fashion", rounds=2, warm_up=0, capacity=1, arms=("ER",))
    slow = {"Incremental": [1.0, 2.0], "ER": [seconds, 2 * seconds]}
    quick = {"Incremental": [0.5, 0.5], "ER": [0.1, 0.1]}
    _, cost = strategy_costs(turns, [slow, quick])
    assert cost.ratio.median == pytest.approx(seconds)
    assert cost.line()[-1] == verdict


def test_spread_and_interval():
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(2, 3, 4)
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


def test_tables_are_aligned():
    table = Table("title", ("name", "number"), (("a", "1"), ("long name", "missing")), ("note",))
    assert table.text().splitlines()[1:4] == [
        "name        number",
        "---------  -------",
        "a                1",
    ]
    remark = Table("t", ("name", "x", "y"), (("a", "1", "2"), ("b", "missing: a long remark")))
    assert remark.text().splitlines()[-2:] == ["a     1  2", "b     missing: a long remark"]
