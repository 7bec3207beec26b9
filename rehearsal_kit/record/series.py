"""The records of one kind in a timeline, in order, each with its place."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Generic, TypeVar

Kind = TypeVar("Kind")


def merged(each: Iterable[list[tuple[int, Kind]]]) -> Iterator[tuple[int, Kind]]:
    """Places and records of several series, each in order of place, as one in order of place."""
    return heapq.merge(*each, key=itemgetter(0))


class Series(Generic[Kind]):
    """Grows at its end."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.records: list[Kind] = []

    def __len__(self) -> int:
        return len(self.places)

    def append(self, place: int, record: Kind) -> None:
        """One more, at the end."""
        self.places.append(place)
        self.records.append(record)

    def placed(self, since: int = 0, until: int | None = None) -> list[tuple[int, Kind]]:
        """Places and records from one place on, up to but without another; None: to the end."""
        chosen = self._between(since, until)
        return [*zip(self.places[chosen], self.records[chosen], strict=True)]

    def between(self, since: int, until: int | None) -> list[Kind]:
        """The records of `placed`, a copy."""
        return self.records[self._between(since, until)]

    def replace(self, placed: Iterable[tuple[int, Kind]]) -> None:
        """Have these instead of all that was there."""
        self.places, self.records = [], []
        for place, record in placed:
            self.append(place, record)

    def _between(self, since: int, until: int | None) -> slice:
        begin = bisect_left(self.places, since) if since > 0 else 0
        return slice(begin, None if until is None else bisect_left(self.places, until))
