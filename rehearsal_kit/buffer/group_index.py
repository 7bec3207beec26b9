"""Which rows of a store are taken, and by which group."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class GroupIndex:
    """The rows of each group. Rows 0 to len - 1 are taken; every operation takes constant time.

    The rows of a group have an order, which only the sequence of operations decides: so a position within
    a group means the same row again after a restore.
    """

    def __init__(self) -> None:
        self._group = array("q")
        self._place = array("q")
        self.members: dict[int, array[int]] = {}
        """The rows of each group that has any, by position; changed by the methods alone."""

    def __len__(self) -> int:
        return len(self._group)

    def sizes(self) -> dict[int, int]:
        """Rows of each group that has any, by number of the group."""
        return {group: len(self.members[group]) for group in sorted(self.members)}

    def group(self, row: int) -> int:
        """The group that has this row."""
        return self._group[row]

    def row(self, group: int, position: int) -> int:
        """The row at this position of a group."""
        return self.members[group][position]

    def largest(self) -> int:
        """The group with most rows; of equal ones the lowest number."""
        return min(self.members, key=lambda group: (-len(self.members[group]), group))

    def append(self, group: int) -> int:
        """Take the next free row for this group."""
        row = len(self._group)
        self._group.append(group)
        self._place.append(0)
        self._enter(row, group)
        return row

    def assign(self, row: int, group: int) -> None:
        """Give a taken row to this group."""
        if self._group[row] != group:
            self._leave(row)
            self._enter(row, group)

    def replace(self, row: int) -> int:
        """Free this row by moving the last one into it; the number the last one had."""
        last = len(self._group) - 1
        self._leave(row)
        if row != last:
            group, place = self._group[last], self._place[last]
            self._group[row], self._place[row] = group, place
            self.members[group][place] = row
        self._group.pop()
        self._place.pop()
        return last

    def rows_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at positions counted through all groups, in the order of `sizes`."""
        groups = [self.members[group] for group in sorted(self.members)]
        ends = np.cumsum([len(rows) for rows in groups])
        found = np.searchsorted(ends, positions, side="right").tolist()
        # A position short of the end of its group counts from that end, as negative indices do.
        rows = [groups[g][p - int(ends[g])] for g, p in zip(found, positions.tolist(), strict=True)]
        return np.array(rows, dtype=np.int64)

    def groups_of_rows(self) -> NDArray[np.int64]:
        """(row,): the group of each."""
        return np.array(self._group, np.int64)

    def places_of_rows(self) -> NDArray[np.int64]:
        """(row,): the position of each within its group."""
        return np.array(self._place, np.int64)

    @staticmethod
    def of(groups: Iterable[int], places: Iterable[int] | None = None) -> GroupIndex:
        """Rows 0, 1, ... of these groups, at these positions within their group (default: in order)."""
        index = GroupIndex()
        for group in groups:
            index.append(int(group))
        if places is not None:
            for row, place in enumerate(places):
                index._place[row] = int(place)
                index.members[index._group[row]][int(place)] = row
        return index

    def _enter(self, row: int, group: int) -> None:
        members = self.members.setdefault(group, array("q"))
        self._group[row], self._place[row] = group, len(members)
        members.append(row)

    def _leave(self, row: int) -> None:
        group, place = self._group[row], self._place[row]
        members = self.members[group]
        last = members.pop()
        if last != row:
            members[place] = last
            self._place[last] = place
        if not members:
            del self.members[group]
