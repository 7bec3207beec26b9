"""Where the rows of the rehearsal buffer came to lie, in words."""

from __future__ import annotations

from collections.abc import Sequence

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.buffer.row_placement import NO_PIECE, NO_ROOM, ON_DEVICE, UNDECIDED

WORDS = {
    ON_DEVICE: "on the device",
    NO_ROOM: "in host memory, as they would take more than a quarter of what is free on the device",
    NO_PIECE: "in host memory, as the device had no such piece of memory",
}


def said_of_places(placed: Sequence[int], share_bytes: int) -> str:
    """What a person is told; empty while some rank has not decided.

    placed: of each rank, as `row_placement` numbers it. share_bytes: that the rows of a rank may take.
    """
    if not placed or UNDECIDED in placed:
        return ""
    parts = []
    for place, words in WORDS.items():
        ranks = [str(rank) for rank, there in enumerate(placed) if there == place]
        if ranks:
            of = "" if len(ranks) == len(placed) else f" on rank {', '.join(ranks)}"
            parts.append(f"{words}{of}")
    return f"the rows of the rehearsal buffer, {share_bytes / MIB:.1f} MiB a rank, lie {'; '.join(parts)}"
