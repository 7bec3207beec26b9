"""The main job: the same stream of scans learned with rehearsal, without, and from scratch, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer
from rehearsal_kit.base.peak_memory import peak_memory
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.compare.demo_scans import FromBeamline, FromFiles, find_files, from_files, running_beamline
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.strategies.references import FromScratch, Incremental
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.reports.comparison import Comparison, Outcome
from rehearsal_kit.reports.html_report import ReportedRun, write_report
from rehearsal_kit.session.progress_bar import train_to_the_end
from rehearsal_kit.session.session import Session

IDLE_TIMEOUT_S = 300.0
ARRIVAL_S = 8.0
"""Seconds between two scans of the simulated beamline."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What suits a kind of stream. README says on which seeds each was chosen."""

    size: int
    """Rows and columns of what the network sees and predicts."""
    training: Training
    rehearsal: Rehearsal
    """Settings of rehearsal, with room for about 30 % of the stream."""


SIMULATED = Preset(
    size=32,
    training=Training(batch=16, epochs=10, learning_rate=3e-3),
    rehearsal=Rehearsal(representatives=16, candidates=8, capacity=294),
)
SEVERAL_FILES = Preset(
    size=32,
    training=Training(batch=16, epochs=6, learning_rate=2e-3),
    rehearsal=Rehearsal(representatives=16, candidates=8, capacity=470),
)
ONE_FILE = Preset(
    size=64,
    training=Training(batch=16, epochs=12, learning_rate=2e-3),
    rehearsal=Rehearsal(representatives=16, candidates=8, capacity=84),
)
STRATEGIES: tuple[Strategy, ...] = (ER(), Incremental(), FromScratch())


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What to run."""

    run: Path
    seeds: tuple[int, ...] = (0,)
    workers: int | None = None
    """None: one per GPU, or two on CPUs."""
    share_gpus: bool = False
    """Whether several workers may have one GPU."""
    scans: tuple[str, ...] = ()
    """Files or patterns; none: a simulated beamline writes scans while the first strategy trains."""
    tasks: int = 4
    """Scans that the simulated beamline writes."""
    epochs: int | None = None
    """Passes over each task; None: as many as fit the stream."""
    reading: ScanReading = field(default_factory=ScanReading)
    """What is told of the files of scans."""

    def __post_init__(self) -> None:
        if self.workers is not None:
            require_integer("workers", self.workers, low=1)
        require_integer("tasks", self.tasks, low=2)
        if self.epochs is not None:
            require_integer("epochs", self.epochs, low=1)
        for seed in self.seeds:
            require_integer("seed", seed, low=0)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise SettingsError(f"seeds are {self.seeds}; they must be distinct, and at least one.")


def preset_for(files: Sequence[Path]) -> Preset:
    """The preset of a simulated beamline, of several scans, or of one that is divided into regions."""
    if not files:
        return SIMULATED
    return ONE_FILE if len(files) == 1 else SEVERAL_FILES


def run_demo(demo: Demo, say: Callable[[str], None]) -> Comparison:
    """Run everything, write `report.html` into the run folder, and return what came out.

    Raises TaskError where no scan could be used, with the first reasons.
    """
    files = find_files(demo.scans)
    folder = RunFolder(demo.run).create()
    say(f"run folder  {folder.path}")
    say("starting    the workers; this takes some seconds")
    comparison, reported = Comparison(), []
    with start_cluster(
        workers=demo.workers, share_gpus=demo.share_gpus, idle_timeout_s=IDLE_TIMEOUT_S
    ) as cluster:
        say(f"devices     {cluster.address.workers} x {cluster.address.kind}, because {cluster.reason}")
        say("to stop     Ctrl-C here; from another terminal: rehearsal-kit stop")
        for seed in demo.seeds:
            home = folder.path / f"seed-{seed}"
            with _stream(demo, files, seed=seed, home=home) as stream:
                for strategy in STRATEGIES:
                    settings = _settings(demo, strategy, seed=seed, preset=preset_for(files))
                    with (
                        peak_memory(cluster.processes) as peak,
                        Session(cluster, run=home / strategy.name.lower(), **settings) as session,
                    ):
                        run = _train(session, stream)
                    comparison.add(seed, Outcome.of(run.name, run.timeline, memory_bytes=peak.bytes))
                    reported.append(run)
    scans = len(comparison.outcomes[demo.seeds[0]][0].tasks)
    title = f"{scans} tasks, {cluster.address.workers} workers, seed {', '.join(map(str, demo.seeds))}"
    if len(demo.seeds) > 1:
        title += f" (table: all seeds; plots: seed {demo.seeds[0]})"
    write_report(
        folder.path / "report.html",
        reported[: len(STRATEGIES)],
        title=title,
        table_html=comparison.html(),
    )
    say(f"report      {folder.path / 'report.html'}")
    return comparison


@contextmanager
def _stream(
    demo: Demo, files: Sequence[Path], *, seed: int, home: Path
) -> Iterator[FromFiles | FromBeamline]:
    scans = home / "scans"
    scans.mkdir(parents=True, mode=0o700)
    if files:
        yield from_files(files, scans, seed=seed, size=preset_for(files).size, reading=demo.reading)
    else:
        beamline = Beamline(folder=scans, scans=demo.tasks, interval_s=ARRIVAL_S, seed=seed)
        with running_beamline(beamline) as stream:
            yield stream


def _settings(demo: Demo, strategy: Strategy, *, seed: int, preset: Preset) -> dict[str, Any]:
    """The same for every strategy but for the strategy itself."""
    epochs = preset.training.epochs if demo.epochs is None else demo.epochs
    return {
        "strategy": strategy,
        "network": PtychoNN(size="small", seed=seed),
        "seed": seed,
        "preparation": Preparation(size=preset.size, reading=demo.reading),
        "training": replace(preset.training, epochs=epochs),
        "rehearsal": preset.rehearsal,
    }


def _train(session: Session, stream: FromFiles | FromBeamline) -> ReportedRun:
    """One session from start to end, with a progress bar."""
    stream.begin(session)
    session.start()
    names = [strategy.name for strategy in STRATEGIES]
    title = f"{names.index(session.strategy.name) + 1}/{len(names)} {session.strategy.name.ljust(11)}"
    train_to_the_end(session, title, expected=stream.expected, finish=True)
    return ReportedRun(session.strategy.name, session.timeline, session.run.previews)
