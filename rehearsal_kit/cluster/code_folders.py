"""The folders from which workers import beside their installation: modules that lie beside a notebook."""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cluster.key_files import WRITABLE


@dataclass(frozen=True, kw_only=True)
class CodeFolders:
    """What became of the folders that a kernel offered."""

    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Those to which others may write."""

    def __str__(self) -> str:
        said = [f"imports from {', '.join(self.used)} too"] if self.used else []
        if self.left_out:
            said.append(f"not from {', '.join(self.left_out)}, where others may write")
        return "; ".join(said)


def offered(code: str | Path | Sequence[str | Path] | None) -> tuple[str, ...]:
    """The folders that are meant by this `code`; None means those from which this process imports.

    ClusterError where one that was asked for is not there, or others may write to it.
    """
    if code is None:
        scripts = Path(sysconfig.get_path("scripts")).resolve()  # of every command, beside the interpreter
        own = dict.fromkeys(Path(entry).resolve() for entry in sys.path)
        return tuple(str(folder) for folder in own if folder.is_dir() and folder != scripts)
    asked = [code] if isinstance(code, (str, Path)) else code
    folders = [Path(folder).expanduser().resolve() for folder in asked]
    for folder in folders:
        if not folder.is_dir():
            raise ClusterError(f"code is {str(folder)!r}, which is no folder; give the one of your modules.")
        if lack := open_to_others(folder):
            raise ClusterError(
                f"code is {str(folder)!r}, but {lack}, so that programs of theirs could run as you; "
                "chmod go-w it, or copy your modules to a folder of your own."
            )
    return tuple(map(str, folders))


def take_up(folders: Sequence[str]) -> CodeFolders:
    """Have this process, and those it starts, import from these folders that it has not on its path yet.

    Last of all, so that nothing there takes the place of a library. Not from those others may write to.
    """
    known = {str(Path(entry).resolve()) for entry in sys.path}
    fresh = [folder for folder in folders if folder not in known]
    used = tuple(folder for folder in fresh if not open_to_others(Path(folder)))
    sys.path += used
    return CodeFolders(used=used, left_out=tuple(folder for folder in fresh if folder not in used))


def open_to_others(folder: Path) -> str:
    """Why others could put modules there; empty if they cannot."""
    for path in (*reversed(folder.parents), folder):
        status = path.stat()
        mode, mine = stat.S_IMODE(status.st_mode), status.st_uid == os.getuid()
        if not mine and status.st_uid != 0:
            return f"{path} belongs to user {status.st_uid}"
        # Whoever may write to a folder can put another one in place of what lies in it, unless it is sticky.
        if mode & WRITABLE and (path == folder or not mode & stat.S_ISVTX):
            return f"others may write to {path} (mode {mode:o})"
        if mine and not mode & 0o011:
            break  # nobody else gets any further
    return ""
