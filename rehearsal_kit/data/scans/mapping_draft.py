"""A mapping for a file of no known layout, as far as names, shapes and units of its datasets tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import h5py

from rehearsal_kit.data.scans.doors.npz_members import NpzMember
from rehearsal_kit.data.scans.doors.scan_file import Dataset, ScanFile
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS

MOST_DATASETS = 5_000
DEEPEST = 12
_POSITION = r"pos|motor|stage|sample|scan|trans|point|coord|(^|[^a-z])[xy]($|[^a-z])"
_ROW, _COLUMN = (
    r"(^|[^a-z])(y|row|vert\w*)($|[^a-z])|[_./](py|sy|ny)$",
    r"(^|[^a-z])(x|col\w*|hor\w*)($|[^a-z])",
)
_NUMBERS = {
    "energy": (r"energy|photon_e|keV", tuple(ENERGIES), "eV"),
    "distance": (r"dist|camera_length|z_m", tuple(LENGTHS), "m"),
    "detector_pixel": (r"pixel_?(size|m|um)|ccd_pixel|pixel$", tuple(LENGTHS), "m"),
}


@dataclass(frozen=True)
class _Found:
    at: str
    shape: tuple[int, ...]
    kind: str
    unit: str

    def is_named(self, pattern: str) -> bool:
        return re.search(pattern, self.at, re.IGNORECASE) is not None


def draft_mapping(file: ScanFile) -> str:
    """TOML of a mapping, with what was found beside what was chosen, and a word where a person has to look.

    Nothing in it is certain: which sign positions have, and how frames are turned, is in no file.
    """
    found = [_of(file, at, dataset) for at, dataset in _datasets(file)]
    frames = max(
        (each for each in found if len(each.shape) in (3, 4) and each.kind in "iuf" and 0 not in each.shape),
        key=lambda each: _size(each.shape),
        default=None,
    )
    lines = [
        f"# Drafted from {file.path.name}. Check every line: `rehearsal-kit inspect {file.path.name} "
        "--mapping THIS`",
        "# shows what comes of it. Signs of positions and the orientation of frames are in no file.",
        "",
        "[frames]",
    ]
    if frames is None:
        lines += ["# no dataset with three or four axes was found", 'at = "/where/the/frames/lie"']
        count, image = None, None
    else:
        raster = len(frames.shape) == 4
        count = frames.shape[0] * frames.shape[1] if raster else frames.shape[0]
        image = frames.shape[-2:]
        axes = "slow fast row column" if raster else "frame row column"
        lines += [f"# {_shown(frames)}", f"at = {_text(frames.at)}", f"axes = {_text(axes)}"]
    lines += ["", *_positions(found, count), *_numbers(found), *_mask(found, image)]
    lines += ["", "# orientation = 0  # 0 to 7: 4 transposes frames, plus 2 flips rows, plus 1 flips columns"]
    return "\n".join(lines) + "\n"


def _datasets(file: ScanFile) -> list[tuple[str, Dataset]]:
    """All datasets with numbers, by their paths; links of a group to itself are not walked twice."""
    found: list[tuple[str, Dataset]] = []
    waiting = [("", 0)]
    while waiting and len(found) < MOST_DATASETS:
        at, depth = waiting.pop(0)
        for name in file.names(at or "/"):
            place = f"{at}/{name}"
            try:
                item = file.find(place)
            except Exception:  # noqa: S112 - whatever cannot be read is not proposed
                continue
            if isinstance(item, h5py.Group):
                if depth < DEEPEST:
                    waiting.append((place, depth + 1))
            elif item is not None and _is_numbers(item):
                found.append((place, item))
    return found


def _is_numbers(item: Dataset | NpzMember) -> bool:
    try:
        return item.shape is not None and item.dtype.kind in "iufbc"
    except TypeError:  # a type that numpy has not
        return False


def _of(file: ScanFile, at: str, dataset: Dataset) -> _Found:
    unit = file.attribute(at, "units")
    return _Found(at, dataset.shape, dataset.dtype.kind, unit if isinstance(unit, str) else "")


def _positions(found: Sequence[_Found], count: int | None) -> list[str]:
    lines = ["[positions]"]
    fitting = [
        each
        for each in found
        if each.kind in "iuf"
        and count
        and count in each.shape
        and len(each.shape) <= 2
        and _size(each.shape) > 1
    ]
    both = [each for each in fitting if len(each.shape) == 2 and sorted(each.shape)[0] in (2, 3)]
    rows = _best([each for each in fitting if _size(each.shape) == count and each.is_named(_ROW)])
    columns = _best([each for each in fitting if _size(each.shape) == count and each.is_named(_COLUMN)])
    lines += [f"# as many as frames: {_shown(each)}" for each in fitting[:8]]
    unit = ""
    if rows and columns:
        lines += [f"row = {_text(rows.at)}", f"column = {_text(columns.at)}"]
        unit = rows.unit
    elif both:
        at, unit = both[0].at, both[0].unit
        parts = ("[:, 0]", "[:, 1]") if both[0].shape[0] == count else ("[0]", "[1]")
        lines += [
            "# which of the two is the row?",
            f"row = {_text(at + parts[0])}",
            f"column = {_text(at + parts[1])}",
        ]
    else:
        lines += [
            '# none was found; in a file beside this one: file = "{stem}.csv", and the numbers of columns',
            'row = "/where/rows/lie"',
            'column = "/where/columns/lie"',
        ]
    known = unit in LENGTHS or unit == "pixel"
    return [
        *lines,
        f"unit = {_text(unit if known else 'm')}" + ("" if known else "  # the file states none"),
        "",
    ]


def _numbers(found: Sequence[_Found]) -> list[str]:
    lines: list[str] = []
    for name, (pattern, units, default) in _NUMBERS.items():
        scalars = [each for each in found if _size(each.shape) == 1 and each.is_named(pattern)]
        if scalars:
            best = scalars[0]
            known = best.unit in units
            lines += [f"[{name}]", *(f"# also: {_shown(each)}" for each in scalars[1:4])]
            lines += [f"at = {_text(best.at)}", f"unit = {_text(best.unit if known else default)}"]
            lines[-1] += "" if known else "  # the file states none"
        else:
            lines += [
                f"# [{name}]  # none was found; write down its number",
                "# value = ?",
                f"# unit = {_text(default)}",
            ]
        lines.append("")
    return lines


def _mask(found: Sequence[_Found], image: tuple[int, ...] | None) -> list[str]:
    masks = [each for each in found if each.shape == image and each.is_named("mask|bad|valid|good")]
    if not masks:
        return ["# no mask of the shape of a frame was found"]
    good = 1 if masks[0].is_named("valid|good") else 0
    return ["[mask]", f"at = {_text(masks[0].at)}", f"good = {good}  # what a good pixel is, 0 or 1"]


def _best(candidates: Sequence[_Found]) -> _Found | None:
    """Positions by their name, before what merely has as many values."""
    key: Callable[[_Found], tuple[bool, int]] = lambda each: (not each.is_named(_POSITION), len(each.at))  # noqa: E731
    return min(candidates, key=key, default=None)


def _shown(each: _Found) -> str:
    return f"{each.at} {each.shape}" + (f" in {each.unit}" if each.unit else "")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _text(words: str) -> str:
    """A text as TOML has it."""
    return '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'
