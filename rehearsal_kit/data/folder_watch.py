"""Rank 0's reader: a thread that looks into folders and reads what arrives, so that no step waits for a disk.

    wishes --ask-->    [ in their order: whole, digested ]            --\
                                                                        poll --> rank 0, at a step boundary
    patterns --watch-->[ found, settled, whole, digested, each once ] --/

A file that its writer has not finished is not bad: it is looked at again when it changes, and now and then.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.errors import NotYetError, RankError, ScanError, said
from rehearsal_kit.data.folder_order import beside, files_of, matching, with_digest
from rehearsal_kit.data.open_experience import others_of
from rehearsal_kit.data.scans.doors.files import Facts, facts_of
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.watched_folders import (
    LONGEST_PAUSE_S,
    WatchedFolders,
    WatchTimes,
    aside,
    named,
    note,
)
from rehearsal_kit.record.commands import Arrived, Command, FinishStream, Watch, Wish
from rehearsal_kit.record.task_fields import TaskFields

SHORT_S = 0.5
"""A step is held up no longer for what was asked: what is read in an instant takes effect at once, in
the order in which it was wished, and only large files come later."""
LARGE = 2**26
"""Bytes of a file that no step is held up for, nor for what is asked while it is read: it takes a tenth of a
second, or hours."""


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

    A scan that is spread over files counts once all of them are there. reading: what is told of scans.
    """

    def __init__(
        self,
        *,
        interval_s: float = 0.5,
        settle_s: float = 0.5,
        say_s: float = 10.0,
        patience_s: float = 300.0,
        reading: ScanReading | None = None,
    ) -> None:
        self._times = WatchTimes(interval_s=interval_s, settle_s=settle_s, say_s=say_s, patience_s=patience_s)
        self._reading = reading or ScanReading()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Wish, bool] | None] = queue.SimpleQueue()
        """A wish, and whether it was asked; None: a large file is being read, and nobody is to wait."""
        self._asked = 0
        """Wishes that have not come back yet."""
        self._held_up_until = 0.0
        self._reads_large = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""
        # What follows belongs to the thread.
        self._folders = WatchedFolders(self._times, tell=self._found, read=self._read)
        self._requests: deque[_Request] = deque()

    # For the thread that owns it ------------------------------------------------------------------------

    def watch(self, pattern: str, *, known: Iterable[str] = (), fields: TaskFields | None = None) -> None:
        """Look at one more pattern from now on, but not at these files. fields: as `Watch` has them."""
        self._inbox.put(partial(self._folders.watch, pattern, tuple(known), fields=fields))

    def know(self, path: str) -> None:
        """This file has arrived already."""
        self._inbox.put(partial(self._folders.know, path))

    def set_aside(self, arrived: Arrived) -> None:
        """This file is no task as it is; with another content it may become one."""
        facts = Facts(arrived.size, arrived.modified)
        was = facts if arrived.modified and not arrived.files else arrived.digest
        self._inbox.put(partial(self._folders.set_aside, arrived.path, was))

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
                held_up = self._asked and not self._reads_large.is_set()
                rest = self._held_up_until - time.monotonic() if held_up else 0.0
                answer = self._answers.get(timeout=max(0.0, rest))
                if answer is not None:
                    wish, asked = answer
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
                self._folders.look()
                self._folders.take()
        except Exception as error:  # told by `poll`: without this thread nothing would ever arrive again
            self._failure = said(error)

    def _rest_s(self) -> float:
        """How long there is nothing to do but to wait for what is asked."""
        if not self._inbox.empty():
            return 0.0
        now, due = time.monotonic(), [time.monotonic() + 1.0]
        if self._requests:
            due.append(self._requests[0].due)
        if self._folders.due is not None:
            due.append(self._folders.due)
        return max(0.0, min(due) - now)

    # What was asked -------------------------------------------------------------------------------------

    def _answer_requests(self) -> None:
        while self._requests and self._requests[0].due <= time.monotonic() and not self._ending.is_set():
            request = self._requests[0]
            command = self._completed(request)
            if command is None:  # not yet; those behind it wait, so that their order stays
                request.pause_s = min(LONGEST_PAUSE_S, max(self._times.interval_s, 0.01, 2 * request.pause_s))
                request.due = time.monotonic() + request.pause_s
                return
            self._requests.popleft()
            self._answers.put((replace(request.wish, command=command), True))

    def _completed(self, request: _Request) -> Command | None:
        command = request.wish.command
        match command:
            case Watch():
                found = () if command.existing else tuple(matching(command.pattern))
                self._folders.watch(command.pattern, found, fields=command.fields)
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
            if error.held and waited < self._times.patience_s:
                if waited >= self._times.say_s and not request.said:
                    request.said = True
                    self._say(f"{error} It is waited for, up to {self._times.patience_s:g} s.")
                return None
            return aside(command, error)
        except ScanError as error:
            return aside(command, error)
        for path in files_of(arrived):
            self._folders.know(path)
        return arrived

    def _is_quiet(self, request: _Request) -> bool:
        """Whether the files that lay there when the stream was to end are tasks or wait for writers."""
        now = time.monotonic()
        if request.files is None:
            self._folders.look_around()
            request.files = self._folders.seen
        seen = self._folders.seen
        left = [path for path in request.files if path in seen]
        held = [path for path in left if self._folders.held(path)]
        if len(held) < len(left):
            request.pause_s = 0.0
            if now - request.since >= self._times.say_s and not request.said:
                request.said = True
                changing = named([path for path in left if path not in held])
                self._say(f"the end of the stream waits for {changing}, not read or still changing.")
            return False
        if held:
            self._say(f"the stream ends without {named(held)}, whose writers have not finished.")
        return True

    def _read(self, arrived: Arrived) -> Arrived:
        """The file with its digest; NotYetError while its writer is at work, ScanError for what is no file.

        What is no scan is handed over as it is: the ranks say together why they cannot use it.
        """
        try:
            # Not spared: only this tells that a writer holds it, and digesting first reads it all each time.
            others = others_of(arrived, self._reading)
        except NotYetError:
            raise
        except ScanError:
            others = []
        arrived = replace(arrived, files=beside(arrived.path, others))
        if sum(facts_of(path).size for path in files_of(arrived)) >= LARGE:
            self._reads_large.set()
            self._answers.put(None)
        try:
            return with_digest(arrived, go_on=self._goes_on(arrived.path))
        finally:
            self._reads_large.clear()

    def _goes_on(self, path: str) -> Callable[[int], bool]:
        """Whether the rest of a file is wanted while it is read; says how far that is where it takes long."""
        began, told = time.monotonic(), False

        def goes_on(read: int) -> bool:
            nonlocal told
            if not told and time.monotonic() - began >= self._times.say_s:
                told = True
                done, size = (f"{count / MIB:.0f}" for count in (read, facts_of(path).size))
                self._say(
                    f"{path} is being read: {done} of {size} MiB in {self._times.say_s:.0f} s; it becomes a "
                    "task once all of it is."
                )
            return not self._ending.is_set()

        return goes_on

    def _say(self, text: str) -> None:
        self._found(note(text))

    def _found(self, command: Command) -> None:
        self._answers.put((Wish(0, command), False))
