"""What growing streams and stores cost, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.bench.store.growth import STREAM_CAPACITY, Found, Growth, Sizes
from rehearsal_kit.bench.table import Table

RATIO_NOTE = "In brackets: the ratio to the first column, both measured in turns."


def growth_tables(found: Sequence[Found], sizes: Sizes) -> tuple[Table, ...]:
    """Stream, capacity and memory of all policies."""
    growing = (
        (
            f"Length of the stream: CPU us per step (update + draw), {STREAM_CAPACITY:,} rows of 256 bytes",
            tuple(f"{batches:,} batches" for batches in sizes.batches),
            [one.stream for one in found],
            "The longer the stream, the fewer samples a reservoir accepts: its cost may fall.",
        ),
        (
            "Capacity: CPU us per step (update + draw), rows of 256 bytes, from full to a quarter more seen",
            tuple(f"{capacity:,} rows" for capacity in sizes.capacities),
            [one.capacity for one in found],
            "Larger stores miss the caches of the processor more often; the floor's would, too.",
        ),
    )
    return (
        *(
            Table(title, ("policy", *columns), _lines(found, growths), (RATIO_NOTE, note))
            for title, columns, growths, note in growing
        ),
        _memory_table(found, sizes),
    )


def _lines(found: Sequence[Found], growths: Sequence[Growth]) -> tuple[tuple[str, ...], ...]:
    return tuple((one.policy, *growth.cells()) for one, growth in zip(found, growths, strict=True))


def _memory_table(found: Sequence[Found], sizes: Sizes) -> Table:
    lines = [
        (
            one.policy,
            f"{one.resident.before / MIB:.0f}",
            f"{one.resident.rows / MIB:.1f}",
            f"{one.resident.grown / MIB:.1f}",
            f"{one.resident.ratio:.4f}",
        )
        for one in found
    ]
    return Table(
        f"Resident memory in MiB: {sizes.resident:,} rows of 48 KiB with sample_id, filled completely",
        ("policy", "before", "rows", "grown by", "grown / rows"),
        tuple(lines),
        ("before: the constant, that is interpreter, torch and this package with all that it imports.",),
    )
