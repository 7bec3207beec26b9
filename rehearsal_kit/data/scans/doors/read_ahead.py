"""Reads one after the other, the next one in a thread while what the last one brought is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(reads: Sequence[Callable[[], T]]) -> Iterator[T]:
    """What these return, in their order; an error of one is raised in its turn, and none is begun after it.

    All that is read is read before this ends, so that nothing reads on when its file is closed. A single read
    takes no thread.
    """
    if len(reads) < 2:
        yield from (read() for read in reads)
        return
    with ThreadPoolExecutor(1, "reading ahead") as thread:
        coming = thread.submit(reads[0])
        for following in reads[1:]:
            found, coming = coming.result(), thread.submit(following)
            yield found
        yield coming.result()
