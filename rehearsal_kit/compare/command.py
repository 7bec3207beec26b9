"""The command `rehearsal-kit compare`: run what is missing, then print and save the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rehearsal_kit.base.errors import RunFolderError, SettingsError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.limits import require_integer
from rehearsal_kit.cluster.cluster import start_cluster, stop_cluster
from rehearsal_kit.cluster.devices import choose_devices
from rehearsal_kit.cluster.other_clusters import running_clusters, starter_of
from rehearsal_kit.compare.arms import PERCENT, Arm
from rehearsal_kit.compare.own_images import SUFFIX, own_stream
from rehearsal_kit.compare.streams import STREAMS, CompareStream, Place, stream_named
from rehearsal_kit.compare.trial import Laid, run_trial
from rehearsal_kit.data.open_experience import open_experience
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.comparison import INCOMPLETE, Comparison
from rehearsal_kit.reports.cost_figures import Costs
from rehearsal_kit.reports.html_report import ReportedRun, write_report

DEFAULT_ARMS = (
    *("incremental", "fromscratch", "cumulative", "agem", "der"),
    *("er", "er@10", "er@5", "derpp", "derpp@10", "derpp@5"),
)
IDLE_TIMEOUT_S = 300.0
CLUSTER = "cluster"
"""The file that names the cluster of the last call."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    names = ", ".join(stream.name for stream in STREAMS)
    add(
        "--stream",
        required=True,
        metavar="NAME|FILE.npz",
        help=f"what is learned: {names}; or arrays images and labels of your own",
    )
    add("--classes-per-task", type=int, metavar="N", help="of a FILE.npz: classes in each task (2)")
    add(
        "--strategies",
        nargs="+",
        default=list(DEFAULT_ARMS),
        metavar="NAME[:SETTING=VALUE,...][@PERCENT]",
        help="such as er:r=8,balance=equal@5, with the buffer as a percentage of the stream "
        f"({PERCENT:g} where it is left out)",
    )
    add("--seeds", type=int, default=3, metavar="N", help="runs of each, seeds 0 to N - 1 (3)")
    add("--first-seed", type=int, default=0, metavar="S", help="begin at another (0)")
    add("--workers", type=int, metavar="N", help="worker processes (one per GPU, else 2 on CPUs)")
    add("--share-gpus", action="store_true", help="let several workers have one GPU")
    add("--data", type=Path, metavar="DIR", help="where data sets lie that are not part of this project")
    add("--run", type=Path, metavar="DIR", help="folder of all runs; one that exists is gone on with")
    add("--full", action="store_true", help="the networks for GPUs: ResNet-18, PtychoNN with four blocks")
    add("--json", type=Path, metavar="FILE", help="the table as data, beside the one in the folder")
    add("--markdown", action="store_true", help="print the table as Markdown too")
    parser.set_defaults(command=_compare)


def _compare(chosen: argparse.Namespace) -> int:
    stream = _stream(chosen)
    arms = list(dict.fromkeys(Arm.parsed(text) for text in chosen.strategies))
    for arm in arms:
        arm.require_suited(stream)
    require_integer("seeds", chosen.seeds, low=1, high=1000)
    require_integer("first-seed", chosen.first_seed, low=0)
    # Which of them there are stands in the folder, and is known before data are laid out.
    devices = choose_devices("auto", workers=chosen.workers, share_gpus=chosen.share_gpus)
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    run = chosen.run or Path("runs") / f"compare-{stream.name}"
    folder = _folder(run, stream, workers=devices.workers, full=chosen.full)
    # Laid out before anything is started: where data are missing, nobody should have to wait for it.
    laid = {seed: _laid(stream, folder, data=chosen.data, seed=seed, full=chosen.full) for seed in seeds}
    comparison = Comparison(measure=stream.measure)
    _end_orphan(folder)
    with start_cluster(
        workers=devices.workers, share_gpus=chosen.share_gpus, idle_timeout_s=IDLE_TIMEOUT_S
    ) as cluster:
        write_private(folder / CLUSTER, cluster.files.folder.name)
        print(
            f"{stream.title}; {devices.workers} workers ({cluster.address.kind}); runs in {folder}",
            flush=True,
        )
        for seed in seeds:
            for number, arm in enumerate(arms, 1):
                title = f"seed {seed}  {number:2}/{len(arms)} {arm.label.ljust(14)}"
                outcome = run_trial(cluster, arm, laid[seed], folder=_home(folder, seed), title=title)
                comparison.add(seed, outcome)
    title = f"{stream.title}: {chosen.seeds} seeds, {devices.workers} workers"
    _tell(chosen, comparison, folder=folder, arms=arms, title=title)
    return INCOMPLETE if comparison.set_aside else 0


def _stream(chosen: argparse.Namespace) -> CompareStream:
    classes: int | None = chosen.classes_per_task
    if chosen.stream.endswith(SUFFIX):
        asked = require_integer("classes-per-task", 2 if classes is None else classes, low=1)
        return own_stream(Path(chosen.stream), classes_per_task=asked)
    if classes is not None:
        raise SettingsError(
            f"classes-per-task is {classes}, but {chosen.stream} has its own tasks; leave it out."
        )
    return stream_named(chosen.stream)


def _tell(
    chosen: argparse.Namespace, comparison: Comparison, *, folder: Path, arms: Sequence[Arm], title: str
) -> None:
    data = json.dumps(comparison.data(), indent=1)
    write_private(folder / "table.json", data)
    if chosen.json is not None:
        chosen.json.write_text(data)
    first = _home(folder, chosen.first_seed)
    shown = [
        ReportedRun(
            arm.label,
            Timeline.load(first / arm.slug / "timeline.jsonl"),
            RunFolder(first / arm.slug).previews,
        )
        for arm in _usual(arms)
    ]
    write_report(
        folder / "report.html",
        shown,
        title=title,
        table_html=comparison.html(),
        costs=Costs(comparison.points(), comparison.front()),
    )
    print("\n" + comparison.text())
    if chosen.markdown:
        print("\n" + comparison.markdown())
    print(f"\nreport      {folder / 'report.html'}\ndata        {folder / 'table.json'}")


def _usual(arms: Sequence[Arm]) -> Sequence[Arm]:
    """Those that the report shows one by one: one size of buffer, the usual one where it is there."""
    sizes = [arm.percent for arm in arms if arm.percent]
    shown = PERCENT if PERCENT in sizes or not sizes else sizes[0]
    return [arm for arm in arms if arm.percent in (0.0, shown)]


def _end_orphan(folder: Path) -> None:
    """End the cluster of an earlier call that was killed: it would go on training into this folder.

    RunFolderError where that call may still be under way.
    """
    if (folder / CLUSTER).exists():
        name = (folder / CLUSTER).read_text()
        for files in running_clusters():
            if files.folder.name == name:
                caller = starter_of(files)
                if caller is not None and (caller.is_seen or not caller.is_here):
                    raise RunFolderError(
                        f"{folder} is being written to by another call, process {caller.number} on "
                        f"{caller.host}, with cluster {name}; wait for it, give another --run, or, if that "
                        f"call was killed: rehearsal-kit stop {name}"
                    )
                print(f"left running by an earlier call: {stop_cluster(files)}", flush=True)


def _folder(run: Path, stream: CompareStream, *, workers: int, full: bool) -> Path:
    """A new folder, or one in which the same comparison was begun."""
    settings = {
        "stream": stream.name,
        **({"source": stream.source} if stream.source else {}),
        "workers": workers,
        "full": full,
        "training": asdict(stream.training),
        "rehearsal": asdict(stream.rehearsal),
        "preparation": asdict(stream.preparation),
        "weights": [stream.alpha, stream.beta],
    }
    text = json.dumps(settings, indent=1)
    folder = RunFolder(run)
    kept = folder.path / "compare.json"
    if not folder.path.exists() or not any(folder.path.iterdir()):
        folder.create()
        write_private(kept, text)
    elif not kept.exists() or kept.read_text() != text:
        raise RunFolderError(
            f"{folder.path} holds something else than a comparison on {stream.name} with {workers} workers "
            "and the present settings; give another --run, or remove it."
        )
    folder.require_private()
    return folder.path


def _home(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _laid(stream: CompareStream, folder: Path, *, data: Path | None, seed: int, full: bool) -> Laid:
    tasks_at = _home(folder, seed) / "tasks"
    tasks_at.mkdir(parents=True, mode=0o700, exist_ok=True)
    place = Place(folder=tasks_at, data=data, seed=seed, size=stream.preparation.size)
    tasks = stream.lay_out(place)
    return Laid(stream=stream, tasks=tasks, samples=_training(tasks, stream), seed=seed, full=full)


def _training(tasks: Sequence[Arrived], stream: CompareStream) -> int:
    return sum(open_experience(task, stream.preparation).count("training") for task in tasks)
