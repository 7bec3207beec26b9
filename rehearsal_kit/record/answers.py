"""What the ranks have said of a wish: where their number has changed, those that heard it last count."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rehearsal_kit.record.records import Applied


def answers(applied: Iterable[Applied], number: int, holders: Collection[str]) -> list[Applied]:
    """What the newest set of ranks that heard this kernel's wish of this number said, in order of rank.

    holders: the names of the kernel, one for each of its connections.
    One record of each of its ranks in the end: `Applied.ranks` says how many these are.
    """
    said = [record for record in applied if record.number == number and record.holder in holders]
    newest = {record.rank: record for record in said if record.ranks == said[-1].ranks}
    return [newest[rank] for rank in sorted(newest)]
