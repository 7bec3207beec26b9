"""A recorded run once more: the same settings, seed, data and commands at their steps, and what differs."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from rehearsal_kit.base.errors import ReplayError, RunFolderError, SettingsError, TaskError
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.cluster.own_code import made_by
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_spec import (
    RunSpec,
    read_network,
    read_settings,
    stored_ranks,
    stored_versions,
    versions,
)
from rehearsal_kit.record.effects import segments
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.records import CheckpointTaken, TaskEnded
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.session import Session


@dataclass(frozen=True)
class Compared:
    """One place at which a run and its replay were compared."""

    where: str
    recorded: str
    """Fingerprint of the weights."""
    replayed: str
    """Empty if the replay did not come by there."""

    @property
    def same(self) -> bool:
        """Whether the weights were the same, bit for bit."""
        return self.recorded == self.replayed


def replay_run(
    run: RunFolder,
    into: RunFolder,
    *,
    network: torch.nn.Module | None = None,
    strategy: Strategy | None = None,
    follow: Callable[[Session], None] | None = None,
) -> Timeline:
    """Carry out what the ledger of `run` says, on as many CPU workers, in a new run folder; its timeline.

    Where the run went on with another number of ranks, the replay does so as well.

    network, strategy: needed where they are not of this package. follow: is given the session that replays,
    for example to print how it gets on.

    Raises:
        ReplayError: other versions of Python, torch or this package, or data that have changed.
        RankError: what was recorded did not come about again.
    """
    require_same_versions(run)
    settings = read_settings(run, strategy)
    spec = RunSpec(
        **vars(replace(settings, run=into.create(), recovery=Recovery(checkpoint_s=1e9, restarts=0))),
        network=read_network(run, network),
        replays=run,
    )
    for part, ranks in enumerate(recorded_ranks(run)):
        with start_cluster("cpu", workers=ranks) as cluster:
            session = Session.resumed(cluster, spec) if part else Session.of(cluster, spec)
            with session:
                session.start()
                if follow is not None:
                    follow(session)
                with contextlib.suppress(TaskError):  # of the recorded run nothing was trained, either
                    session.wait()
    return Timeline.load(into.timeline)


def recorded_ranks(run: RunFolder) -> list[int]:
    """How many ranks made each part of a run; one part, unless it went on with another number of them."""
    parts = segments(read_ledger(run.effects))
    return [int(part[0]["world_size"]) for part in parts] or [stored_ranks(run)]


def compare_runs(run: RunFolder, replayed: RunFolder) -> list[Compared]:
    """The weights at every end of a task, at every checkpoint and at the end: recorded and replayed."""
    recorded, again = _fingerprints(run), _fingerprints(replayed)
    compared = [Compared(where, weights, again.get(where, "")) for where, weights in recorded.items()]
    if run.weights.exists():
        # What is kept after the last task, or at the end, where the run came that far.
        now = _of_file(replayed.weights) if replayed.weights.exists() else ""
        compared.append(Compared("weights that were kept", _of_file(run.weights), now))
    return compared


def require_same_versions(run: RunFolder) -> None:
    """ReplayError if something that decides about bits is not what it was."""
    then, now = stored_versions(run), versions()
    changed = [
        f"{name} {then[name]} then, {now.get(name)} now" for name in then if then[name] != now.get(name)
    ]
    if changed:
        raise ReplayError(
            f"run {run.path} was made with other versions: {'; '.join(changed)}. Bits can only be the same "
            "with the same ones; install them, for example in an environment of their own."
        )


def _fingerprints(run: RunFolder) -> dict[str, str]:
    timeline = Timeline.load(run.timeline)
    ended = {
        f"task {record.task} ended, branch {record.branch}, step {record.step}": record.weights
        for record in timeline.records(TaskEnded)
    }
    taken = {
        f"checkpoint {record.checkpoint}, branch {record.branch}, step {record.step}": record.weights
        for record in timeline.records(CheckpointTaken)
    }
    return {**ended, **taken}


def _of_file(path: Path) -> str:
    seen = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        seen.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


@dataclass(frozen=True)
class OwnCode:
    """Where a command line says that code is which is not of this package; None: it is."""

    network: str | None = None
    strategy: str | None = None


def replay_command(run: Path, *, check: bool, keep: Path | None, own: OwnCode) -> int:
    """For the command line: replay a run, or every run in a folder; 1 if anything was not the same."""
    folders = [run] if (run / "settings.json").exists() else _runs_below(run)
    if not folders:
        raise ReplayError(f"{run} is not the folder of a run, and there is none in it.")
    network, strategy = _own(own)
    differing = 0
    for folder in folders:
        with tempfile.TemporaryDirectory(prefix="rehearsal-kit-replay-") as scratch:
            into = RunFolder((keep / folder.name) if keep is not None else Path(scratch) / "replay")
            recorded = RunFolder(folder)
            _require_code(recorded, network, strategy)
            effects = len(read_ledger(recorded.effects))
            ranks = ", then ".join(map(str, recorded_ranks(recorded)))
            print(f"{folder}: {effects} recorded effects, {ranks} ranks")
            timeline = replay_run(recorded, into, network=network, strategy=strategy)
            print(f"  replayed {len(timeline.losses()[0])} steps")
            if check:
                differing += _print_comparison(compare_runs(recorded, into))
    return 1 if differing else 0


def _own(own: OwnCode) -> tuple[torch.nn.Module | None, Strategy | None]:
    network = None if own.network is None else made_by(own.network)
    strategy = None if own.strategy is None else made_by(own.strategy)
    if network is not None and not isinstance(network, torch.nn.Module):
        raise SettingsError(
            f"--network {own.network} makes a {type(network).__name__}, not a torch.nn.Module."
        )
    if strategy is not None and not isinstance(strategy, Strategy):
        raise SettingsError(f"--strategy {own.strategy} makes a {type(strategy).__name__}, not a Strategy.")
    return network, strategy


def _require_code(run: RunFolder, network: torch.nn.Module | None, strategy: Strategy | None) -> None:
    """ReplayError that says what to type, if the run was made with code that is not given."""
    for option, read in (
        ("--network", lambda: read_network(run, network)),
        ("--strategy", lambda: read_settings(run, strategy)),
    ):
        try:
            read()
        except RunFolderError as error:
            raise ReplayError(
                f"{error} Here: {option} FILE.py:NAME, with the file and the name of the class, or of a "
                f"function that makes it without arguments; {option} MODULE:NAME if it is installed."
            ) from error


def _runs_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("settings.json"))


def _print_comparison(compared: list[Compared]) -> int:
    for each in compared:
        words = "same" if each.same else f"DIFFERENT: {each.replayed or 'not reached'}"
        print(f"  {each.where}: {each.recorded} {words}")
    different = sum(not each.same for each in compared)
    print(f"  {len(compared) - different} of {len(compared)} bit-identical")
    return different
