"""Which checkpoints of a run are on disk."""

from __future__ import annotations

from rehearsal_kit.record.records import CheckpointKept, CheckpointTaken
from rehearsal_kit.record.timeline import Timeline


def kept_checkpoints(timeline: Timeline) -> list[tuple[CheckpointTaken, CheckpointKept]]:
    """When each was taken and what is kept of it, the oldest first; without those removed since."""
    kept = {record.checkpoint: record for record in timeline.records(CheckpointKept)}
    gone = {number for record in kept.values() for number in record.removed}
    return [
        (taken, kept[taken.checkpoint])
        for taken in timeline.records(CheckpointTaken)
        if taken.checkpoint in kept and taken.checkpoint not in gone
    ]
