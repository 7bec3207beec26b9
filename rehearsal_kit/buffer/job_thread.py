"""One thread beside the one that trains, which does one job after the other."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Job(Generic[Result]):
    """What was handed over to a `JobThread`, and what came of it."""

    def __init__(self, work: Callable[..., Result], *arguments: Any) -> None:
        self._work: Callable[[], Result] | None = lambda: work(*arguments)
        self._value: Result
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()

    @staticmethod
    def done(value: Result) -> Job[Result]:
        """One that is done already, with this result."""
        job = Job(lambda: value)
        job.run()
        return job

    def run(self) -> None:
        """Do it, once."""
        work, self._work = self._work, None  # what it was given is not held any longer than it takes
        assert work is not None  # noqa: S101 - for the type checker; it is run once
        try:
            self._value = work()
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        finally:
            self._running.release()

    def result(self) -> Result:
        """What came of it, once it is done; raises what it raised. May be asked again."""
        with self._running:
            if self._error is not None:
                raise self._error
            return self._value


class JobThread:
    """Does what it is given in order, until `end`; the process does not end before.

    A `ThreadPoolExecutor` of one worker does as much and more, for 6 µs of processor time a job in the thread
    that hands over and 8 µs in the other one, of the 60 and 100 µs that a step may take there.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        # Threads that are no daemons are waited for before anything tells them at the end of a process.
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self._thread, _wait_for, weakref.ref(self._thread))  # after what is said next
        self.end = weakref.finalize(self, self._jobs.put, None)
        """Have the thread end after what it was given, without waiting for it."""

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Job[Result]:
        """Have it do this. RuntimeError after `end`, when nobody would."""
        if not self.end.alive:
            raise RuntimeError(f"thread {self._thread.name} was ended and takes no more jobs.")
        job = Job(work, *arguments)
        self._jobs.put(job)
        return job

    def join(self) -> None:
        """End it, and wait until it has ended."""
        self.end()
        self._thread.join()


def _wait_for(thread: weakref.ref[threading.Thread]) -> None:
    if (running := thread()) is not None:
        running.join()


def _work(jobs: SimpleQueue[Job[Any] | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # nobody but who asked holds the result while this waits
