"""Rank 0's reader: a thread that looks into folders and reads what arrives, so that no step waits for a disk.

    wishes --ask-->    [ in their order: whole, digested ]            --\
                                                                        poll --> rank 0, at a step boundary
    patterns --watch-->[ found, settled, whole, digested, each once ] --/

A file that its writer has not finished is not bad: it is looked at again when it changes, and now and then.
"""

from __future__ import annotations

import contextlib
import os
import queue
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.errors import NotYetError, RankError, ScanError, said
from rehearsal_kit.base.natural_order import in_natural_order
from rehearsal_kit.data.folder_order import matching, unordered, with_digest
from rehearsal_kit.data.scans.files import Facts, facts_of
from rehearsal_kit.data.scans.hdf5 import opened
from rehearsal_kit.record.commands import (
    NOTE_LENGTH,
    Arrived,
    Command,
    FinishStream,
    Note,
    SetAside,
    Watch,
    Wish,
)

SHORT_S = 0.5
"""A step is held up no longer for what was asked: what is read in an instant takes effect at once, in
the order in which it was wished, and only large files come later."""
LONGEST_PAUSE_S = 5.0
"""Seconds between two attempts to open a file that its writer holds, at most."""
LOOKING = 20
"""Pause between looks at the folders, in multiples of what one takes: training needs the processor more."""
NAMED = 3
"""Files that a note names; of more it tells the number."""


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
    held: bool = False
    """Whether it was found not to be whole."""
    said: bool = False


@dataclass
class _Request:
    """A wish whose turn has come, or that waits for those before it."""

    wish: Wish
    since: float
    due: float = 0.0
    pause_s: float = 0.0
    said: bool = False
    files: frozenset[str] | None = None
    """Files that lay there when the turn of the end of a stream came."""


class FolderWatch:
    """One reader thread; its public methods are for the thread that owns it, and wait for nothing.

    A matching file counts once its size and time have not changed for `settle_s` seconds and it opens. One
    that does not, as its writer has not finished, is said after `say_s` seconds and set aside once it has not
    changed for `patience_s`; even then it is looked at again when it changes.
    """

    def __init__(
        self,
        *,
        interval_s: float = 0.5,
        settle_s: float = 0.5,
        say_s: float = 10.0,
        patience_s: float = 300.0,
    ) -> None:
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._say_s = say_s
        self._patience_s = patience_s
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Wish, bool]] = queue.SimpleQueue()
        self._asked = 0
        """Wishes that have not come back yet."""
        self._held_up_until = 0.0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""
        # What follows belongs to the thread.
        self._patterns: dict[str, float | None] = {}
        """Monotonic seconds since which each pattern has matched nothing; None: it has, or that was said."""
        self._known: set[str] = set()
        self._aside: dict[str, Facts | str] = {}
        """What each file was when it was set aside: its facts, or the digest of its content."""
        self._seen: dict[str, _Seen] = {}
        self._ready: deque[str] = deque()
        self._requests: deque[_Request] = deque()
        self._next_look = 0.0

    # For the thread that owns it ------------------------------------------------------------------------

    def watch(self, pattern: str, *, known: Iterable[str] = ()) -> None:
        """Look at one more pattern from now on, but not at these files."""
        self._inbox.put(partial(self._watch, pattern, tuple(known)))

    def know(self, path: str) -> None:
        """This file has arrived already."""
        self._inbox.put(partial(self._know, path))

    def set_aside(self, arrived: Arrived) -> None:
        """This file is no task as it is; with another content it may become one."""
        facts = Facts(arrived.size, arrived.modified)
        self._inbox.put(partial(self._set_aside, arrived.path, facts if arrived.modified else arrived.digest))

    def ask(self, wish: Wish) -> None:
        """Have a wish come back from `poll`, after those asked before: with what only its file can tell."""
        now = time.monotonic()
        self._asked, self._held_up_until = self._asked + 1, now + SHORT_S
        self._inbox.put(partial(self._requests.append, _Request(wish, now)))

    def poll(self) -> list[Wish]:
        """What has become ready since the last call, or is about to; RankError if the thread has failed."""
        if self._failure:
            raise RankError(f"the thread that reads arriving files has failed: {self._failure}.")
        if self._thread is None and not self._inbox.empty():
            self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)
            self._thread.start()
        found: list[Wish] = []
        with contextlib.suppress(queue.Empty):
            while True:
                rest = self._held_up_until - time.monotonic() if self._asked else 0.0
                wish, asked = self._answers.get(timeout=max(0.0, rest))
                self._asked -= asked
                found.append(wish)
        return found

    def close(self, deadline_s: float = 5.0) -> None:
        """End the thread; one that a file system holds is left behind after so many seconds."""
        self._ending.set()
        self._inbox.put(lambda: None)
        if self._thread is not None:
            self._thread.join(deadline_s)

    # The thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                with contextlib.suppress(queue.Empty):
                    self._inbox.get(timeout=self._rest_s())()
                    continue  # all that was asked, before anything is read
                self._answer_requests()
                self._look()
                if self._ready:
                    self._take(self._ready.popleft())
        except Exception as error:  # told by `poll`: without this thread nothing would ever arrive again
            self._failure = said(error)

    def _rest_s(self) -> float:
        """How long there is nothing to do but to wait for what is asked."""
        if not self._inbox.empty():
            return 0.0
        now, due = time.monotonic(), [time.monotonic() + 1.0]
        if self._requests:
            due.append(self._requests[0].due)
        if self._patterns:
            due.append(now if self._ready else self._next_look)
        return max(0.0, min(due) - now)

    def _watch(self, pattern: str, known: Iterable[str]) -> None:
        self._patterns[pattern] = time.monotonic()
        self._known.update(known)

    def _know(self, path: str) -> None:
        self._known.add(path)
        self._aside.pop(path, None)

    def _set_aside(self, path: str, was: Facts | str) -> None:
        self._known.discard(path)
        self._aside[path] = was

    # What was asked -------------------------------------------------------------------------------------

    def _answer_requests(self) -> None:
        while self._requests and self._requests[0].due <= time.monotonic() and not self._ending.is_set():
            request = self._requests[0]
            command = self._completed(request)
            if command is None:  # not yet; those behind it wait, so that their order stays
                request.pause_s = min(LONGEST_PAUSE_S, max(self._interval_s, 0.01, 2 * request.pause_s))
                request.due = time.monotonic() + request.pause_s
                return
            self._requests.popleft()
            self._answers.put((replace(request.wish, command=command), True))

    def _completed(self, request: _Request) -> Command | None:
        command = request.wish.command
        match command:
            case Watch():
                found = () if command.existing else tuple(matching(command.pattern))
                self._watch(command.pattern, found)
                return replace(command, known=found)
            case Arrived():
                return self._submitted(command, request)
            case FinishStream():
                return command if self._is_quiet(request) else None
        return command

    def _submitted(self, command: Arrived, request: _Request) -> Command | None:
        """The task that a person gave; waited for only while a writer is seen to be at work on it."""
        try:
            arrived = self._read(command)
        except NotYetError as error:
            waited = time.monotonic() - request.since
            if error.held and waited < self._patience_s:
                if waited >= self._say_s and not request.said:
                    request.said = True
                    self._say(f"{error} It is waited for, up to {self._patience_s:g} s.")
                return None
            return _aside(command, error)
        except ScanError as error:
            return _aside(command, error)
        self._know(command.path)
        return arrived

    def _is_quiet(self, request: _Request) -> bool:
        """Whether the files that lay there when the stream was to end are tasks or wait for writers."""
        now = time.monotonic()
        if request.files is None:
            self._look_around(now)
            request.files = frozenset(self._seen)
        left = [path for path in request.files if path in self._seen]
        held = [path for path in left if self._seen[path].held]
        if len(held) < len(left):
            request.pause_s = 0.0
            if now - request.since >= self._say_s and not request.said:
                request.said = True
                changing = _named([path for path in left if path not in held])
                self._say(f"the end of the stream waits for {changing}, not read or still changing.")
            return False
        if held:
            self._say(f"the stream ends without {_named(held)}, whose writers have not finished.")
        return True

    def _read(self, arrived: Arrived) -> Arrived:
        """The file with its digest; NotYetError while its writer is at work, ScanError for what is no file.

        What is no HDF5 file is handed over as it is: the ranks say together why they cannot use it.
        """
        try:
            # Not spared: only this tells that a writer holds it, and digesting first reads it all each time.
            with opened(Path(arrived.path)):
                pass
        except NotYetError:
            raise
        except ScanError:
            pass
        return with_digest(arrived, go_on=self._goes_on(arrived.path))

    def _goes_on(self, path: str) -> Callable[[int], bool]:
        """Whether the rest of a file is wanted while it is read; says how far that is where it takes long."""
        began, told = time.monotonic(), False

        def goes_on(read: int) -> bool:
            nonlocal told
            if not told and time.monotonic() - began >= self._say_s:
                told = True
                done, size = (f"{count / MIB:.0f}" for count in (read, facts_of(path).size))
                self._say(
                    f"{path} is being read: {done} of {size} MiB in {self._say_s:.0f} s; it becomes a "
                    "task once all of it is, and gives way to training until then."
                )
            return not self._ending.is_set()

        return goes_on

    # What is found --------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = time.monotonic()
        if self._patterns and not self._ready and now >= self._next_look:
            self._look_around(now)

    def _look_around(self, now: float) -> None:
        waiting = set(self._ready)
        found: set[str] = set()
        for pattern in self._patterns:
            found.update(matches := unordered(pattern))
            self._remark(pattern, bool(matches), now)
        found -= self._known
        self._seen = {path: seen for path, seen in self._seen.items() if path in found | waiting}
        other: list[str] = []
        ready = [path for path in in_natural_order(found - waiting) if self._is_ready(path, now, other)]
        if other:
            self._say(f"{_named(other)} matches what is watched and is no file; only files become tasks.")
        self._ready.extend(ready)
        took = time.monotonic() - now
        self._next_look = now + max(self._interval_s, LOOKING * took)

    def _remark(self, pattern: str, matches: bool, now: float) -> None:
        since = self._patterns[pattern]
        if since is not None and matches:
            self._patterns[pattern] = None
        elif since is not None and now - since >= self._say_s:
            self._patterns[pattern] = None
            self._say(
                f"nothing has matched {pattern} for {self._say_s:g} s; it is still watched. Is its folder "
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
            return self._settle_s <= 0
        return now - seen.changed >= self._settle_s and now >= seen.due

    def _take(self, path: str) -> None:
        """Hand over a file that seems to be whole, or find out that it is not."""
        seen, command = self._seen[path], Arrived(name=Path(path).stem, path=path)
        try:
            arrived = self._read(command)
        except NotYetError as error:
            self._wait_for(path, seen, error)
            return
        except ScanError as error:
            self._found(_aside(command, error))
            self._aside[path] = seen.facts
        else:
            if arrived.digest != self._aside.get(path):
                self._know(path)
                self._found(arrived)
            else:  # what was set aside before this process began
                self._aside[path] = Facts(arrived.size, arrived.modified)
        self._seen.pop(path)

    def _wait_for(self, path: str, seen: _Seen, error: NotYetError) -> None:
        now = time.monotonic()
        seen.held = True
        seen.pause_s = min(LONGEST_PAUSE_S, max(self._interval_s, 2 * seen.pause_s))
        seen.due = now + seen.pause_s
        if now - seen.changed >= self._patience_s:
            words = (
                f"{error} It has not changed for {self._patience_s:g} s, and is looked at again when it does."
            )
            self._found(SetAside(name=Path(path).stem, path=path, reason=words))
            self._aside[path] = self._seen.pop(path).facts
        elif now - seen.since >= self._say_s and not seen.said:
            seen.said = True
            self._say(
                f"{error} It is waited for, and set aside once it has not changed for {self._patience_s:g} s."
            )

    def _say(self, text: str) -> None:
        self._found(Note(text=text[:NOTE_LENGTH]))

    def _found(self, command: Command) -> None:
        self._answers.put((Wish(0, command), False))


def _aside(command: Arrived, error: Exception) -> SetAside:
    return SetAside(name=command.name, path=command.path, reason=str(error), digest=command.digest)


def _named(paths: list[str]) -> str:
    more = len(paths) - NAMED
    return ", ".join(paths[:NAMED]) + (f" and {more} more" if more > 0 else "")
