"""What goes on beside a run that trains, for a measurement: somebody who looks, and another program."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.rank.previewer import Previewer

HASHING = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')"


class Beside(Protocol):
    """Something that goes on until it is ended."""

    @property
    def came(self) -> bool:
        """Whether what was to happen beside training has happened."""

    def end(self) -> None:
        """Let it go on no longer, and wait until it does not."""


class Asking:
    """Somebody who looks at previews, every second, as a dashboard does; until the end."""

    def __init__(self, previewer: Previewer) -> None:
        self._previewer = previewer
        self._before = previewer.newest(None)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asking", daemon=True)
        self._thread.start()

    @property
    def came(self) -> bool:
        """Whether there is a preview that was not there before."""
        return self._previewer.newest(None) is not self._before

    def end(self) -> None:
        """Look no longer."""
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        while True:
            self._previewer.ask(None)
            pickle.dumps(self._previewer.newest(None))  # on its way to the kernel
            if self._ended.wait(1.0):
                return


class OtherProgram:
    """A program that has nothing to do with the run hashes a file: what such work costs training at least."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-I", "-c", HASHING, str(path)]
        self._process = subprocess.Popen(command)  # noqa: S603 - our own interpreter, nothing of the environment

    @property
    def came(self) -> bool:
        """Whether all of the file is hashed; RehearsalKitError if the program has failed."""
        if self._process.poll():
            raise RehearsalKitError(f"the program that hashes a file ended with {self._process.returncode}.")
        return self._process.returncode == 0

    def end(self) -> None:
        """Leave no process."""
        self._process.kill()
        self._process.wait()
