"""What the ranks have said of a wish: where their number has changed, those that heard it last count."""

from __future__ import annotations

from collections.abc import Iterable

from rehearsal_kit.record.records import Applied


def answers(applied: Iterable[Applied], number: int, holder: str) -> list[Applied]:
    """What the newest set of ranks that heard this kernel's wish of this number said, in order of rank.

    One record of each of its ranks in the end: `Applied.ranks` says how many these are.
    """
    said = [record for record in applied if (record.number, record.holder) == (number, holder)]
    newest = {record.rank: record for record in said if record.ranks == said[-1].ranks}
    return [newest[rank] for rank in sorted(newest)]
