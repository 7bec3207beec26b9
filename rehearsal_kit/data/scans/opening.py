"""The way from a file to a scan: which layout it has, and what that finds in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ScanDescription
from rehearsal_kit.data.scans.doors.companions import companion_name
from rehearsal_kit.data.scans.doors.scan_file import ScanFile, opened_scan
from rehearsal_kit.data.scans.finishing import finished
from rehearsal_kit.data.scans.layouts.mapped import describe_mapped
from rehearsal_kit.data.scans.layouts.reconstruction_beside import with_reconstruction
from rehearsal_kit.data.scans.layouts.registry import LAYOUTS, RECONSTRUCTIONS, Layout
from rehearsal_kit.data.scans.mapping import ScanMapping
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan import Scan


def open_scan(path: str | Path, layout: str | None = None, *, reading: ScanReading | None = None) -> Scan:
    """The scan in a file; reads metadata, positions and a few frames.

    Frames come out as counts, float32, of a square around the beam with DC in its centre; pixels that a mask
    marks, that hold what detectors write where they have no count, that never count or that count what is not
    there are bad.

    Args:
        path: an HDF5 file or an .npz archive.
        layout: one of {layouts}, or None to recognise it.
        reading: what the file does not tell, or wrongly.

    Raises:
        NotYetError: no such file, or one that its writer has not finished.
        ScanError: no known layout or several, a dataset that is missing, of the wrong shape or outside the
            folders that links may lead to, impossible geometry, or values that may be markers or counts.
        SettingsError: `layout` is given twice.
    """
    reading = reading or ScanReading()
    if layout is not None:
        reading = replace(reading, layout=layout)
    with opened_scan(Path(path), reading.roots) as file:
        return scan_in(file, reading)


open_scan.__doc__ = (open_scan.__doc__ or "").replace("{layouts}", ", ".join(f'"{name}"' for name in LAYOUTS))


def scan_in(file: ScanFile, reading: ScanReading | None = None) -> Scan:
    """The scan in a file that is open already, as `open_scan` describes it; ScanError if there is none."""
    reading = reading or ScanReading()
    return finished(described(file, reading), file, reading)


def described(file: ScanFile, reading: ScanReading | None = None) -> ScanDescription:
    """What the file tells, by the layout that it has, with the reconstruction in another one if there is one.

    Reads no more than a few frames.
    """
    reading = reading or ScanReading()
    if isinstance(reading.mapping, ScanMapping):
        layout = None
        found = describe_mapped(file, reading.mapping, layout="mapping", reading=reading)
    else:
        name, layout = _layout_of(file, reading)
        found = layout.describe(file, reading)
        found = found if found.layout == name else replace(found, layout=name)
    if reading.positions is not None:
        _require_taken(file, companion_name(file.path, reading.positions), found.layout)
    beside = _reconstruction_of(file, reading, layout)
    if beside is None or (found.object is not None and found.object.path == beside.path):
        return found  # a mapping has found the object there by itself
    for each in RECONSTRUCTIONS.values():
        if each.recognises(beside):
            return with_reconstruction(found, file, each.describe(beside), name=beside.path.name)
    known = "; ".join(f"{name}, which has {each.mark}" for name, each in RECONSTRUCTIONS.items())
    raise ScanError(
        f"{beside.path}: is no reconstruction of a known layout (known: {known}). Say in a mapping where its "
        "object lies."
    )


def _require_taken(file: ScanFile, name: str, layout: str) -> None:
    """ScanError unless something was taken of a file that a person named: nothing is passed over."""
    if file.place_of(name) not in file.others:
        raise ScanError(
            f"{file.path}: positions are said to lie in {name}, but the layout {layout} has them in the file "
            "itself. Leave positions= out, or say in a mapping where they lie."
        )


def _reconstruction_of(file: ScanFile, reading: ScanReading, layout: Layout | None) -> ScanFile | None:
    """The file with the reconstruction, if somebody named one, or if there is one where the layout has it."""
    if reading.reconstruction is not None:
        return file.other(companion_name(file.path, reading.reconstruction))
    if layout is None or layout.reconstruction is None:
        return None
    beside = file.path.with_name(companion_name(file.path, layout.reconstruction))
    return file.other(beside.name) if beside.exists() else None


def _layout_of(file: ScanFile, reading: ScanReading) -> tuple[str, Layout]:
    if reading.layout is not None and reading.layout not in RECONSTRUCTIONS:
        if reading.layout not in LAYOUTS:
            raise ScanError(f"layout {reading.layout!r} is unknown; known are: {', '.join(LAYOUTS)}.")
        return reading.layout, LAYOUTS[reading.layout]
    seen = {name: layout for name, layout in LAYOUTS.items() if layout.recognises(file)}
    meant = set(seen) - {name for layout in seen.values() for name in layout.instead_of}
    if len(meant) == 1:
        name = meant.pop()
        return name, seen[name]
    if meant:
        marks = "; ".join(f"{name}, which has {seen[name].mark}" for name in seen if name in meant)
        raise ScanError(f"{file.path}: may be of several layouts ({marks}); say which one by layout=.")
    for name, each in RECONSTRUCTIONS.items():
        if each.recognises(file):
            raise ScanError(
                f"{file.path}: is a reconstruction ({name}: {each.mark}) and holds no frames. Open the scan "
                f"that does, and name this file for it: ScanReading(reconstruction={file.path.name!r}), with "
                "{stem} or {number} for what the scan's own name has in this one's."
            )
    raise ScanError(
        f"{file.path}: is of no known layout (known: {', '.join(LAYOUTS)}; `rehearsal-kit inspect --layouts` "
        f"says what each has). Say where its fields lie: `rehearsal-kit inspect {file.path} --mapping-draft "
        "mapping.toml` writes down what it finds; then give that mapping, or the layout if it is one of "
        "these without its mark."
    )
