"""`rehearsal-kit replay`: recorded runs carried out again, from their ledgers."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from rehearsal_kit.base.errors import ReplayError, RunFolderError, SettingsError
from rehearsal_kit.cluster.own_code import made_by
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_spec import read_network, read_settings
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.session.replay import Compared, compare_runs, recorded_ranks, replay_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a folder of runs")
    parser.add_argument(
        "--check", action="store_true", help="compare the weights bit for bit; 1 if any differ"
    )
    parser.add_argument(
        "--any-versions", action="store_true", help="try it with other versions than the run was made with"
    )
    parser.add_argument("--into", type=Path, metavar="DIR", help="keep the replayed runs there")
    own = "of your own, that the run was made with: FILE.py:NAME, or MODULE:NAME if it is installed"
    parser.add_argument("--network", metavar="CODE", help=f"a network {own}")
    parser.add_argument("--strategy", metavar="CODE", help=f"a strategy {own}")
    parser.set_defaults(command=_replay)


def _replay(chosen: argparse.Namespace) -> int:
    own = OwnCode(network=chosen.network, strategy=chosen.strategy)
    return replay_command(
        chosen.run, check=chosen.check, keep=chosen.into, own=own, any_versions=chosen.any_versions
    )


@dataclass(frozen=True)
class OwnCode:
    """Where a command line says that code is which is not of this package; None: it is."""

    network: str | None = None
    strategy: str | None = None


def replay_command(
    run: Path, *, check: bool, keep: Path | None, own: OwnCode, any_versions: bool = False
) -> int:
    """Replay a run, or every run in a folder, for the command line; 1 if anything was not the same."""
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
            tell = _print_change if any_versions else None
            timeline = replay_run(recorded, into, network=network, strategy=strategy, tell=tell)
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


def _print_change(words: str) -> None:
    print(f"  {words}", flush=True)


def _print_comparison(compared: list[Compared]) -> int:
    for each in compared:
        words = "same" if each.same else f"DIFFERENT: {each.replayed or 'not reached'}"
        print(f"  {each.where}: {each.recorded} {words}")
    different = sum(not each.same for each in compared)
    print(f"  {len(compared) - different} of {len(compared)} bit-identical")
    return different
