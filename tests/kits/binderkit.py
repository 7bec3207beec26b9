"""What a visitor of mybinder.org has: the files of `binder/`, one processor, no network, a home of its own.

No image is built: `binder/postBuild` and `binder/start` run as they are, in a virtual environment of its own
that sees the packages of the tests in place of conda's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKOUT = (
    "binder",
    "notebooks",
    "rehearsal_kit",
    "tests",
    ".gitignore",
    "LICENSE",
    "README.md",
    "pyproject.toml",
)
VISITOR = 1000
"""User and group in a container of Binder."""
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
LOOK_S = 1.0
OF_FILE = re.compile(
    r"^[\da-f]+-[\da-f]+ \S+ \S+ \S+ \d+ +(/.*)\n"
    r"(?:[A-Z].*\n)*?Rss: +(\d+) kB\n(?:[A-Z].*\n)*?Anonymous: +(\d+) kB\n",
    re.MULTILINE,
)
"""What /proc/PID/smaps says of a piece of a file: its name, and kilobytes in memory and of these written."""


@dataclass(frozen=True)
class Home:
    """A folder in which everything of a visitor lies."""

    folder: Path

    @property
    def checkout(self) -> Path:
        """The home of the visitor: repo2docker copies the repository there."""
        return self.folder / "jovyan"

    @property
    def python(self) -> str:
        return str(self.folder / "environment" / "bin" / "python")

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("environment/lib/python*/site-packages")
        return found

    def environment(self) -> dict[str, str]:
        """All variables with which a program of the visitor begins."""
        return {
            "PATH": f"{self.folder}/environment/bin:/usr/bin:/bin",
            "HOME": str(self.checkout),
            "USER": "jovyan",
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self.folder / "tmp"),
        }

    def command(self, *words: str) -> list[str]:
        """Run this by binder/start, as the visitor, on one processor and without a network."""
        return [sys.executable, "-P", __file__, str(self.checkout / "binder" / "start"), *words]


def build(folder: Path) -> Home:
    """Copy the checkout into the home and run postBuild there, as repo2docker would after conda's work."""
    home = Home(folder)
    home.checkout.mkdir()
    (folder / "tmp").mkdir()
    for name in CHECKOUT:
        source, target = ROOT / name, home.checkout / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    venv.create(folder / "environment", symlinks=True)
    # Their folders alone, not what lies in their own .pth files: the package comes from postBuild.
    of_tests = [path for path in sys.path if path.endswith("-packages")]
    (home.packages / "of-tests.pth").write_text("\n".join(of_tests))
    done = subprocess.run(
        [home.checkout / "binder" / "postBuild"],
        cwd=home.checkout,
        env=home.environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def require_no_network() -> None:
    """Skip where this system lets nobody leave its network, with the reason; in CI that is a failure."""
    import pytest  # not by the program that `enter` is

    done = subprocess.run(
        [sys.executable, "-P", __file__, "true"], capture_output=True, text=True, check=False
    )
    if done.returncode and os.environ.get("CI"):
        pytest.fail(f"CI must not skip the notebooks: {done.stderr}")
    if done.returncode:
        pytest.skip(f"a program cannot be taken off the network here: {done.stderr.splitlines()[-1]}")


def enter(command: list[str]) -> None:
    """Become this program without a network, without any right but those of a user, on one processor."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{VISITOR} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{VISITOR} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        answer = fcntl.ioctl(asked, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack("16xh14x", answer)
        fcntl.ioctl(asked, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.execvp(command[0], command)


def network_of(process: int | str) -> str:
    """Which network a process is in; empty if it has ended."""
    try:
        return os.readlink(f"/proc/{process}/ns/net")
    except OSError:
        return ""


def members(network: str) -> dict[int, str]:
    """The processes in a network and their command lines."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        if network_of(name) == network:
            words = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found[int(name)] = words
    return found


@dataclass
class Memory:
    """What all processes in a network take together at their peak; look at it until `close`.

    Pages that were written are divided among those that share them. Pages of files are counted once: what
    the system calls proportional (PSS) would be less where other tests have the same libraries open.
    """

    network: str
    written: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Command line and bytes of each process at the peak."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each file that any of them had in memory."""

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        return sum(of_one for _, of_one in self.written.values()) + sum(self.files.values())

    def table(self) -> str:
        """The processes at the peak, the largest first."""
        rows = sorted(((of_one, words) for words, of_one in self.written.values()), reverse=True)
        rows += [(sum(self.files.values()), "pages of files, once each"), (self.peak, "together")]
        return "\n".join(f"{of_one / 1e6:7.1f} MB  {words[:150]}" for of_one, words in rows)

    def _watch(self) -> None:
        highest = last = 0
        while not self._ended.wait(LOOK_S):
            now = {pid: (words, _written(pid)) for pid, words in members(self.network).items()}
            total = sum(of_one for _, of_one in now.values())
            if total > highest:
                self.written, highest = now, total
            if total > 1.05 * last:  # rarely: this takes as long as everything else here
                last = total
                for pid in now:
                    for file, size in _files(pid).items():
                        self.files[file] = max(size, self.files.get(file, 0))


def _written(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return sum(
        1024 * int(kilobytes) for kilobytes in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", text, re.MULTILINE)
    )


def _files(pid: int) -> dict[str, int]:
    """Bytes of each file in the memory of a process, without the pages that it has written."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return {}
    found: dict[str, int] = {}
    for file, resident, anonymous in OF_FILE.findall(text):
        found[file] = found.get(file, 0) + 1024 * (int(resident) - int(anonymous))
    return found


if __name__ == "__main__":
    enter(sys.argv[1:])
