"""The command line of `rehearsal-kit bench`: what is measured, how long, and what is printed."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer
from rehearsal_kit.base.settings import POLICIES
from rehearsal_kit.bench.children import in_child, in_children, on_ranks
from rehearsal_kit.bench.gpu.gpu_bench import Options
from rehearsal_kit.bench.gpu.gpu_bench import measure as measure_gpus
from rehearsal_kit.bench.machine import Machine
from rehearsal_kit.bench.ranks.exchange_costs import ExchangeCost, exchange_table
from rehearsal_kit.bench.ranks.exchange_ranks import PUBLISHED, measure_exchange
from rehearsal_kit.bench.ranks.plan_costs import measure_plans, plan_table
from rehearsal_kit.bench.ranks.step_costs import StepCost, step_table
from rehearsal_kit.bench.ranks.step_ranks import Trial, measure_steps
from rehearsal_kit.bench.ranks.strategy_costs import StrategyCost, strategy_costs, strategy_table
from rehearsal_kit.bench.ranks.strategy_ranks import Turns, measure_turns
from rehearsal_kit.bench.ranks.subjects import ON_CPU, ON_CUDA, RESNET_ON_CUDA, Subject
from rehearsal_kit.bench.ranks.thread_costs import ThreadCost, measure_threads, thread_table
from rehearsal_kit.bench.run.checkpoint_costs import Windows, checkpoint_table, measure_checkpoints
from rehearsal_kit.bench.run.command_latency import latency_table, measure_latency
from rehearsal_kit.bench.run.history import history_table, measure_histories, plain_cost
from rehearsal_kit.bench.run.long_runs import LongRun
from rehearsal_kit.bench.run.reading import measure_reading, reading_table
from rehearsal_kit.bench.run.undisturbed import FULL, QUICK, measure
from rehearsal_kit.bench.store import beside_others, growth
from rehearsal_kit.bench.store.growth_tables import growth_tables
from rehearsal_kit.bench.store.workload import WIDE_FIELDS, Workload
from rehearsal_kit.bench.table import Measured
from rehearsal_kit.compare.arms import Arm
from rehearsal_kit.compare.streams import stream_named
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.record.run_folder import RunFolder

PAIRS = 40
ROUNDS = 100
LEAST_STEP_S = 0.15
RATIOS = ((56, 7, 14), (16, 24, 8))
"""b, r and c as published (Bouvier et al. 2025): for classification, and for ptychography."""
COMMANDS = 200
CHECKPOINTS = (("small", 32, 1000, 12, 12),)
"""Size of PtychoNN, side of the images, capacity, steps of a window, windows of either kind."""
LONG_RUNS = tuple(LongRun(steps, 2000) for steps in (10_000, 100_000, 1_000_000))
READING = (600, 20)
"""Frames of a scan, and rounds of either way to read it."""
QUICK_RUNS = (LongRun(50, 6), LongRun(100, 6))
QUICK_NOTE = "--quick: too few rounds and too small sizes; the numbers mean nothing."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the measurements and their options."""
    benches = parser.add_subparsers(required=True, metavar="WHAT")
    buffer = benches.add_parser("buffer", help="the local store beside other libraries; minutes")
    buffer.set_defaults(command=_buffer)
    exchange = benches.add_parser("exchange", help="the background work between real ranks, and its plan")
    exchange.set_defaults(command=_exchange)
    threads = benches.add_parser("threads", help="what rehearsal takes of the training thread, and beside it")
    threads.set_defaults(command=_threads)
    step = benches.add_parser("step", help="training steps with and without rehearsal, on real ranks")
    step.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (2)")
    step.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="on which they train (cpu)")
    step.add_argument("--pairs", type=int, default=PAIRS, metavar="N", help=f"steps of either kind ({PAIRS})")
    step.add_argument(
        "--fastest",
        action="store_true",
        help="on CUDA by whatever is fastest, not with the same bits each time",
    )
    step.set_defaults(command=_step)
    strategies = benches.add_parser("strategies", help="training steps of all strategies, on real ranks")
    strategies.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (2)")
    strategies.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (cpu)")
    strategies.add_argument(
        "--streams", nargs="+", default=["fashion", "beamline"], metavar="NAME", help="as of `compare`"
    )
    strategies.add_argument(
        "--strategies",
        nargs="+",
        default=[],
        metavar="NAME[:SETTING=VALUE,...]",
        help="as of `compare`, such as er:r=8,balance=tasks (all, with the settings of the stream)",
    )
    strategies.set_defaults(command=_strategies)
    steering = benches.add_parser("steering", help="from a command to its effect on all ranks of a session")
    steering.add_argument("--ranks", type=int, default=2, metavar="N", help="workers (2)")
    steering.set_defaults(command=_steering)
    checkpoint = benches.add_parser("checkpoint", help="what checkpoints cost the training beside them")
    checkpoint.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (2)")
    checkpoint.set_defaults(command=_checkpoint)
    reading = benches.add_parser("reading", help="frames of a large detector, beside h5py alone")
    reading.set_defaults(command=_reading)
    undisturbed = benches.add_parser("undisturbed", help="training beside arrivals, previews and checkpoints")
    undisturbed.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (2)")
    undisturbed.set_defaults(command=_undisturbed)
    history = benches.add_parser("history", help="kernel, panel and rank 0 after 10^4 to 10^6 records")
    history.set_defaults(command=_history)
    gpu = benches.add_parser("gpu", help="the GPUs of this machine, each figure beside its limit; minutes")
    gpu.add_argument("--ranks", type=int, default=1, metavar="N", help="processes, each on a GPU (1)")
    gpu.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only with --quick")
    gpu.add_argument("--markdown", action="store_true", help="print tables of Markdown")
    gpu.set_defaults(command=_gpu)
    for bench in benches.choices.values():
        bench.add_argument("--json", type=Path, metavar="FILE", help="everything as data, single rounds too")
        bench.add_argument("--quick", action="store_true", help="only to see that it works: seconds")


def _buffer(chosen: argparse.Namespace) -> int:
    machine = _begin(chosen)
    workload = Workload(capacity=500 if chosen.quick else 10_000, fields=WIDE_FIELDS)
    effort = beside_others.Effort(rounds=3, steps=5) if chosen.quick else beside_others.Effort(15, 40)
    sizes = growth.QUICK if chosen.quick else growth.Sizes()
    each = [(entry, workload, effort) for entry in beside_others.entries()]
    outcomes = in_children(beside_others.measure, each, say=_say, shared=chosen.quick)
    policies = [(policy, sizes) for policy in POLICIES]
    found = in_children(growth.measure, policies, say=_say, shared=chosen.quick)
    tables = beside_others.table(outcomes, workload, effort), *growth_tables(found, sizes)
    data = {
        "workload": asdict(workload),
        "contestants": [outcome.data() for outcome in outcomes],
        "growth": [one.data() for one in found],
    }
    return _end(chosen, Measured(tables, data, machine))


def _exchange(chosen: argparse.Namespace) -> int:
    machine = _begin(chosen)
    costs = []
    for ranks in (2,) if chosen.quick else (1, 2, 4):
        for rows in PUBLISHED[:1] if chosen.quick else PUBLISHED:
            _say(f"measuring the exchange of {rows.name}, ranks: {ranks}")
            times = on_ranks(["cpu"] * ranks, measure_exchange, rows, 3 if chosen.quick else 40)
            costs.append(ExchangeCost(ranks, rows, times))
    _say("measuring the plan")
    plans = measure_plans(rounds=3 if chosen.quick else 15, steps=5 if chosen.quick else 40)
    data = {"exchange": [cost.data() for cost in costs], "plan": [plan.data() for plan in plans]}
    return _end(chosen, Measured((exchange_table(costs, machine.cpus), plan_table(plans)), data, machine))


def _threads(chosen: argparse.Namespace) -> int:
    machine = _begin(chosen)
    costs: list[ThreadCost] = in_child(measure_threads, 50 if chosen.quick else 3000)
    data = {"threads": [cost.data() for cost in costs]}
    return _end(chosen, Measured((thread_table(costs),), data, machine))


def _step(chosen: argparse.Namespace) -> int:
    require_integer("ranks", chosen.ranks, low=1)
    require_integer("pairs", chosen.pairs, low=2)
    devices = _devices(chosen.device, chosen.ranks)
    machine = _begin(chosen)
    costs = []
    for subjects in (ON_CPU,) if chosen.device == "cpu" else (ON_CUDA, RESNET_ON_CUDA):
        for ratio in RATIOS[:1] if chosen.quick else RATIOS:
            trial = _trial(ratio, subjects, devices=devices, chosen=chosen)
            _say(f"measuring steps of {subjects[0].family} with b={ratio[0]}, r={ratio[1]}, c={ratio[2]}")
            costs.append(StepCost(trial, tuple(on_ranks(devices, measure_steps, trial))))
    table = step_table(costs, cpus=machine.cpus)
    data = {"steps": [cost.data() for cost in costs]}
    return _end(chosen, Measured((table,), data, machine))


def _strategies(chosen: argparse.Namespace) -> int:
    require_integer("ranks", chosen.ranks, low=1)
    devices = _devices(chosen.device, chosen.ranks)
    streams = [stream_named(name) for name in chosen.streams]
    for arm, stream in itertools.product(map(Arm.parsed, chosen.strategies), streams):
        arm.require_suited(stream)
    rounds, warm_up, capacity = (3, 1, 200) if chosen.quick else (ROUNDS, 5, 2000)
    measured = [
        Turns(stream.name, rounds, warm_up, capacity, chosen.device, tuple(chosen.strategies))
        for stream in (streams[:1] if chosen.quick else streams)
    ]
    for turns in measured:
        turns.require_drawable()
    machine = _begin(chosen)
    costs: list[StrategyCost] = []
    for turns in measured:
        _say(f"measuring steps of {len(turns.measured())} strategies with the settings of {turns.stream}")
        costs += strategy_costs(turns, on_ranks(devices, measure_turns, turns))
    table = strategy_table(costs, ranks=chosen.ranks)
    return _end(chosen, Measured((table,), {"strategies": [cost.data() for cost in costs]}, machine))


def _steering(chosen: argparse.Namespace) -> int:
    require_integer("ranks", chosen.ranks, low=1)
    machine = _begin(chosen)
    latency = measure_latency(chosen.ranks, 5 if chosen.quick else COMMANDS, _say)
    return _end(chosen, Measured((latency_table(latency),), {"steering": latency.data()}, machine))


def _checkpoint(chosen: argparse.Namespace) -> int:
    require_integer("ranks", chosen.ranks, low=1)
    machine = _begin(chosen)
    costs = []
    for size, side, capacity, steps, windows in CHECKPOINTS[:1] if chosen.quick else CHECKPOINTS:
        _say(f"measuring checkpoints of PtychoNN {size} with {capacity} samples")
        with tempfile.TemporaryDirectory(prefix="rehearsal-bench-") as folder:
            wanted = Windows(
                scan=Beamline(folder=Path(folder), scans=1, seed=0).write(0),
                folder=RunFolder(Path(folder) / "run").create().path,
                size=size,
                side=side,
                capacity=64 if chosen.quick else capacity,
                steps=3 if chosen.quick else steps,
                windows=2 if chosen.quick else windows,
            )
            costs.append(on_ranks(["cpu"] * chosen.ranks, measure_checkpoints, wanted)[0])
    data = {"checkpoints": [cost.data() for cost in costs]}
    return _end(chosen, Measured((checkpoint_table(costs),), data, machine))


def _reading(chosen: argparse.Namespace) -> int:
    machine = _begin(chosen)
    frames, rounds = (20, 2) if chosen.quick else READING
    _say(f"reading a scan of {frames} frames, {rounds} times in turns with h5py alone")
    with tempfile.TemporaryDirectory(prefix="rehearsal-bench-") as folder:
        cost = measure_reading(Path(folder), frames=frames, rounds=rounds)
    return _end(chosen, Measured((reading_table(cost),), {"reading": cost.data()}, machine))


def _history(chosen: argparse.Namespace) -> int:
    machine = _begin(chosen)
    costs = measure_histories(QUICK_RUNS if chosen.quick else LONG_RUNS, say=_say, shared=chosen.quick)
    data = {"history": [plain_cost(cost) for cost in costs]}
    return _end(chosen, Measured((history_table(costs),), data, machine))


def _undisturbed(chosen: argparse.Namespace) -> int:
    require_integer("ranks", chosen.ranks, low=1)
    machine = _begin(chosen)
    _say("measuring steps beside arrivals, previews and checkpoints, in turns with none of them")
    found = measure(QUICK if chosen.quick else FULL, chosen.ranks)
    return _end(chosen, Measured((found.table(),), {"undisturbed": found.data()}, machine))


def _gpu(chosen: argparse.Namespace) -> int:
    options = Options(ranks=chosen.ranks, device=chosen.device, quick=chosen.quick)
    machine = _begin(chosen)
    return _end(chosen, measure_gpus(options, machine, say=_say), markdown=chosen.markdown)


def _trial(
    ratio: tuple[int, int, int],
    subjects: tuple[Subject, ...],
    *,
    devices: tuple[str, ...],
    chosen: argparse.Namespace,
) -> Trial:
    batch, representatives, candidates = ratio
    return Trial(
        batch=batch,
        representatives=representatives,
        candidates=candidates,
        capacity=100 if chosen.quick else 1000,
        pairs=min(chosen.pairs, 3) if chosen.quick else chosen.pairs,
        warm_up=1 if chosen.quick else 3,
        least_s=0.0 if chosen.quick else LEAST_STEP_S,
        subjects=subjects,
        devices=devices,
        deterministic=not chosen.fastest,
    )


def _devices(kind: str, ranks: int) -> tuple[str, ...]:
    if kind == "cpu":
        return ("cpu",) * ranks
    there = torch.cuda.device_count()
    if ranks > there:
        raise SettingsError(
            f"ranks is {ranks}, but there are {there} CUDA devices; every rank needs one of its own. Give "
            "--ranks a smaller number, or leave out --device cuda."
        )
    return tuple(f"cuda:{rank}" for rank in range(ranks))


def _begin(chosen: argparse.Namespace) -> Machine:
    if chosen.json is not None and not chosen.json.absolute().parent.is_dir():
        raise SettingsError(
            f"--json is {str(chosen.json)!r}, but its folder does not exist; make it before, so that what is "
            "measured is not lost."
        )
    if chosen.quick:
        _say(QUICK_NOTE)
    return Machine.here()


def _end(chosen: argparse.Namespace, measured: Measured, *, markdown: bool = False) -> int:
    print(measured.markdown() if markdown else measured.text(), flush=True)
    if chosen.quick:
        print(QUICK_NOTE)
    if chosen.json is not None:
        measured.write(chosen.json)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
