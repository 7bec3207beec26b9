"""Tasks of tensors that were written for wishes that were not accepted: nobody will ever read them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rehearsal_kit.base.errors import RunFolderError
from rehearsal_kit.record.commands import Arrived, Wish
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.run_folder import RunFolder


def remove_unclaimed(run: RunFolder, refused: Sequence[Wish]) -> None:
    """Remove the tensors of these wishes; those that an accepted wish names stay, and what is not ours.

    A wish may have been accepted when it was asked first, and refused when it was asked again because the
    answer was lost. Where the ledger or the folder cannot be read now, all stay.
    """
    paths = {wish.command.path for wish in refused if isinstance(wish.command, Arrived)}
    if not paths:
        return
    with contextlib.suppress(OSError, RunFolderError):
        claimed = {run.find(str(entry.get("path", ""))) for entry in read_ledger(run.wishes)}
        for file in {run.find(path) for path in paths} - claimed:
            if Path(file).parent == run.tasks and Path(file).stem.isdecimal():  # named by us
                Path(file).unlink(missing_ok=True)
