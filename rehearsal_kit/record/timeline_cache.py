"""A cache beside the timeline of a run: what a kernel holds of its first lines, which it need not read then.

Written now and then by rank 0. Where it is missing, damaged, of another version or of another file, all lines
are read instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.files import write_private
from rehearsal_kit.record.record_lines import RecordLines
from rehearsal_kit.record.records import Record
from rehearsal_kit.record.series import merged
from rehearsal_kit.record.thinning import ThinnedSteps
from rehearsal_kit.record.timeline import Timeline

VERSION = 1
SAMPLE = 4096
"""Bytes at the beginning and before the end of what it stands for, by which the file is known again."""
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*Record.__args__, ThinnedSteps)}


@dataclass(frozen=True)
class Begun:
    """The lines of a timeline that are still to be read."""

    lines: RecordLines
    trouble: str
    """Why the cache could not be used; empty where it was used, or there is none."""


def condensed_path(path: Path) -> Path:
    """Where the cache of this timeline lies."""
    return path.with_name(f"{path.stem}-condensed.json")


def begin(path: Path, timeline: Timeline) -> Begun:
    """Fill a timeline with what the cache knows; the rest is to be read from the lines."""
    try:
        with condensed_path(path).open("rb") as stream:
            head = _read_head(stream.readline(), path)
            body = stream.read()
        if hashlib.sha256(body).hexdigest() != head["digest"]:
            raise ValueError("its content is not what was written")
        placed = [*_read_body(body)]
        lines = RecordLines(path, offset=int(head["offset"]), number=int(head["lines"]))
        length = int(head["records"])
    except FileNotFoundError:
        return Begun(RecordLines(path), "")
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Begun(RecordLines(path), f"{condensed_path(path).name} cannot be used: {error}")
    timeline.fill(placed, length)
    return Begun(lines, "")


def condense(path: Path) -> None:
    """Bring the cache of this timeline up to date; OSError or ValueError where that cannot be done."""
    timeline = Timeline(bounded=True)
    lines = begin(path, timeline).lines
    timeline.extend(record for _, record in lines.read() if record is not None)
    body = _body(timeline)
    head = {
        "version": VERSION,
        "offset": lines.offset,
        "lines": lines.number,
        "records": len(timeline),
        "sample": _sample(path, lines.offset),
        "digest": hashlib.sha256(body).hexdigest(),
    }
    write_private(condensed_path(path), json.dumps(head).encode() + b"\n" + body)


def _sample(path: Path, offset: int) -> str:
    """Fingerprint of the first bytes of a file and of those before this offset."""
    with path.open("rb") as stream:
        first = stream.read(min(SAMPLE, offset))
        stream.seek(max(0, offset - SAMPLE))
        return hashlib.sha256(first + stream.read(min(SAMPLE, offset))).hexdigest()


def _read_head(line: bytes, path: Path) -> dict[str, Any]:
    head: dict[str, Any] = json.loads(line)
    if not isinstance(head, dict) or head.get("version") != VERSION:
        raise ValueError("it is of another version")
    if _sample(path, int(head["offset"])) != head["sample"]:
        raise ValueError(f"it is not of this {path.name}")
    return head


def _body(timeline: Timeline) -> bytes:
    """A line for each kind: names of its values, then places and values of all records."""
    kinds: dict[type[Any], tuple[list[int], list[Record]]] = {}
    for place, record in timeline.placed():
        places, records = kinds.setdefault(type(record), ([], []))
        places.append(place)
        records.append(record)
    lines = []
    for kind, (places, records) in kinds.items():
        names = [field.name for field in fields(kind)]
        rows = [[getattr(record, name) for name in names] for record in records]
        table = {"kind": kind.__name__, "names": names, "places": places, "rows": rows}
        lines.append(json.dumps(table, allow_nan=False, separators=(",", ":")).encode() + b"\n")
    return b"".join(lines)


def _read_body(body: bytes) -> Iterator[tuple[int, Record]]:
    each = []
    for line in body.splitlines():
        table = json.loads(line)
        kind, names = _KINDS[table["kind"]], table["names"]
        rows = zip(table["places"], table["rows"], strict=True)
        each.append([(int(place), _record(kind, names, row)) for place, row in rows])
    return merged(each)


def _record(kind: type[Any], names: list[str], row: list[Any]) -> Record:
    record: Record = record_of(kind, dict(zip(names, row, strict=True)))
    return record
