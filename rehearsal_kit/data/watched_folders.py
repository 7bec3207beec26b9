"""Folders that are watched: which files match, have settled, and are whole, each handed over once."""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.base.natural_order import in_natural_order
from rehearsal_kit.data.folder_order import files_of, unordered
from rehearsal_kit.data.scans.doors.files import Facts
from rehearsal_kit.record.commands import NOTE_LENGTH, Arrived, Command, Note, SetAside
from rehearsal_kit.record.task_fields import TaskFields

LONGEST_PAUSE_S = 5.0
"""Seconds between two attempts to open a file that its writer holds, at most."""
LOOKING = 20
"""Pause between looks at the folders, in multiples of what one takes: training needs the processor more."""
NAMED = 3
"""Files that a note names; of more it tells the number."""


@dataclass(frozen=True, kw_only=True)
class WatchTimes:
    """Seconds that a watch waits for this and that."""

    interval_s: float = 0.5
    """The least between two looks."""
    settle_s: float = 0.5
    """A file is opened once its size and time have not changed for so long."""
    say_s: float = 10.0
    """People are told what is waited for after so long."""
    patience_s: float = 300.0
    """A file that is not whole is set aside once it has not changed for so long."""


@dataclass
class _Seen:
    """A file that matches and is no task yet."""

    facts: Facts
    changed: float
    """When it was first seen like this."""
    since: float
    """When it was first seen at all."""
    pause_s: float = 0.0
    due: float = 0.0
    """When it is opened again; more and more seldom while its writer holds it."""
    fields: TaskFields | None = None
    held: bool = False
    """Whether it was found not to be whole."""
    said: bool = False


class WatchedFolders:
    """What one thread knows of the folders that it looks into.

    tell: takes what is found, and notes. read: the file with its digest; NotYetError while its writer is at
    work, ScanError for what is no file.
    """

    def __init__(
        self, times: WatchTimes, *, tell: Callable[[Command], None], read: Callable[[Arrived], Arrived]
    ) -> None:
        self._times = times
        self._tell = tell
        self._read = read
        self._patterns: dict[str, float | None] = {}
        """Monotonic seconds since which each pattern has matched nothing; None: it has, or that was said."""
        self._fields: dict[str, TaskFields | None] = {}
        """Which datasets of the files of each pattern make a task; None: they are scans."""
        self._known: set[str] = set()
        self._aside: dict[str, Facts | str] = {}
        """What each file was when it was set aside: its facts, or the digest of its content."""
        self._seen: dict[str, _Seen] = {}
        self._ready: deque[str] = deque()
        self._next_look = 0.0

    @property
    def due(self) -> float | None:
        """Monotonic seconds at which there is something to do; None where nothing is watched."""
        if not self._patterns:
            return None
        return time.monotonic() if self._ready else self._next_look

    @property
    def seen(self) -> frozenset[str]:
        """Files that match and are no tasks yet."""
        return frozenset(self._seen)

    def held(self, path: str) -> bool:
        """Whether one of these was found not to be whole."""
        return self._seen[path].held

    def watch(self, pattern: str, known: Iterable[str], *, fields: TaskFields | None = None) -> None:
        """Look at one more pattern from now on, but not at these files."""
        self._patterns[pattern] = time.monotonic()
        self._fields[pattern] = fields
        self._known.update(known)

    def know(self, path: str) -> None:
        """This file has arrived already."""
        self._known.add(path)
        self._aside.pop(path, None)

    def set_aside(self, path: str, was: Facts | str) -> None:
        """This file is no task as it is; with other facts, or another digest, it may become one."""
        self._known.discard(path)
        self._aside[path] = was

    def look(self) -> None:
        """Look around where that is due."""
        if self._patterns and not self._ready and time.monotonic() >= self._next_look:
            self.look_around()

    def look_around(self) -> None:
        """Look at all patterns now."""
        now = time.monotonic()
        waiting = set(self._ready)
        found: dict[str, TaskFields | None] = {}
        for pattern in self._patterns:
            matches = unordered(pattern)
            found |= dict.fromkeys(matches, self._fields[pattern])
            self._remark(pattern, bool(matches), now)
        left = found.keys() - self._known
        self._seen = {path: seen for path, seen in self._seen.items() if path in left | waiting}
        other: list[str] = []
        ready = [path for path in in_natural_order(left - waiting) if self._is_ready(path, now, other)]
        for path in self._seen.keys() & left:
            self._seen[path].fields = found[path]
        if other:
            self._say(f"{named(other)} matches what is watched and is no file; only files become tasks.")
        self._ready.extend(ready)
        took = time.monotonic() - now
        self._next_look = now + max(self._times.interval_s, LOOKING * took)

    def _remark(self, pattern: str, matches: bool, now: float) -> None:
        since = self._patterns[pattern]
        if since is not None and matches:
            self._patterns[pattern] = None
        elif since is not None and now - since >= (say_s := self._times.say_s):
            self._patterns[pattern] = None
            self._say(
                f"nothing has matched {pattern} for {say_s:g} s; it is still watched. Is its folder "
                "the one that the instrument writes to, as seen from this machine?"
            )

    def _is_ready(self, path: str, now: float, other: list[str]) -> bool:
        try:
            status = os.stat(path)
        except OSError:  # gone again between the look and now
            self._seen.pop(path, None)
            return False
        facts, before = Facts.of(status), self._aside.get(path)
        if facts == before:
            return False
        if not stat.S_ISREG(status.st_mode):
            self._aside[path] = facts
            other.append(path)
            return False
        seen = self._seen.get(path)
        if seen is None or seen.facts != facts:
            since, said = (now, False) if seen is None else (seen.since, seen.said)
            self._seen[path] = _Seen(facts, changed=now, since=since, said=said)
            return self._times.settle_s <= 0
        return now - seen.changed >= self._times.settle_s and now >= seen.due

    def take(self) -> None:
        """Hand over the next file that seems to be whole, if there is one, or find out that it is not."""
        if not self._ready:
            return
        path = self._ready.popleft()
        seen = self._seen[path]
        if path in self._known:  # it was found meanwhile to belong to another one
            self._seen.pop(path)
            return
        command = Arrived(name=Path(path).stem, path=path, fields=seen.fields)
        try:
            arrived = self._read(command)
        except NotYetError as error:
            self._wait_for(path, seen, error)
            return
        except ScanError as error:
            self._tell(aside(command, error))
            self._aside[path] = seen.facts
        else:
            if arrived.digest != self._aside.get(path):
                for each in files_of(arrived):  # none of them is a task of its own
                    self.know(each)
                self._tell(arrived)
            else:  # what was set aside before this process began
                self._aside[path] = seen.facts
        self._seen.pop(path)

    def _wait_for(self, path: str, seen: _Seen, error: NotYetError) -> None:
        now, patience_s = time.monotonic(), self._times.patience_s
        seen.held = True
        seen.pause_s = min(LONGEST_PAUSE_S, max(self._times.interval_s, 2 * seen.pause_s))
        seen.due = now + seen.pause_s
        if now - seen.changed >= patience_s:
            words = f"{error} It has not changed for {patience_s:g} s, and is looked at again when it does."
            self._tell(SetAside(name=Path(path).stem, path=path, reason=words))
            self._aside[path] = self._seen.pop(path).facts
        elif now - seen.since >= self._times.say_s and not seen.said:
            seen.said = True
            self._say(
                f"{error} It is waited for, and set aside once it has not changed for {patience_s:g} s."
            )

    def _say(self, text: str) -> None:
        self._tell(note(text))


def note(text: str) -> Note:
    """A note of this text, as far as one has room for it."""
    return Note(text=text[:NOTE_LENGTH])


def aside(command: Arrived, error: Exception) -> SetAside:
    """What arrived is no task, and why."""
    return SetAside(name=command.name, path=command.path, reason=str(error), digest=command.digest)


def named(paths: list[str]) -> str:
    """The first of these files, and how many more there are."""
    more = len(paths) - NAMED
    return ", ".join(paths[:NAMED]) + (f" and {more} more" if more > 0 else "")
