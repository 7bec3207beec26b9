"""A scan described by a mapping: that of a person, or that of a layout which needs no more than a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, Mask, ObjectPlace, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import companion_name, is_text, table_of
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.frames.orientation import in_words
from rehearsal_kit.data.scans.frames.raw_frames import RawFrames
from rehearsal_kit.data.scans.mapping import (
    FramesAt,
    MaskAt,
    NumberAt,
    ObjectAt,
    PositionsAt,
    ScanMapping,
    parted,
)
from rehearsal_kit.data.scans.objects import shape_of_object
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS, factor_of, require_positive
from rehearsal_kit.data.scans.reading import ScanReading

PIXEL = {"pixel": 1.0}
NO_OBJECT = "no reconstruction: nothing to train on"


@dataclass
class Finder:
    """What a mapping asks for, looked up in one file; it notes where each field was found."""

    file: ScanFile
    reading: ScanReading = field(default_factory=ScanReading)
    found: dict[str, str] = field(default_factory=dict)
    """Where each field comes from, as people would look for it."""

    def place(self, places: Sequence[str]) -> str | None:
        """The first of these places at which something lies."""
        for at in places:
            path = parted(at)[0].partition("@")[0]
            if (path == "/" and "@" in at) or self.file.find(path) is not None or self.file.matching(path):
                return at
        return None

    def number(self, name: str, at: NumberAt | None, units: Mapping[str, float]) -> float | None:
        """A number above zero in SI units or eV; None where there is none, or a person says it anyway."""
        if at is None or self._told(name):
            return None
        if at.value is not None:
            self.found[name] = f"{at.value:g} {at.unit}, as the mapping has it"
            where = f"{self.file.path}: {name} of the mapping"
            return require_positive(at.value * factor_of(at.unit, units, where), where)
        for place in at.at:
            value = self.file.quantity(place, units, default=at.unit)
            if value is not None:
                self.found[name] = f"{place}, in {self.file.unit(place, at.unit)}"
                return value
        return None

    def _told(self, name: str) -> bool:
        """Whether a person says what this field is, which counts even where the file has nonsense."""
        told = {
            "energy": self.reading.energy_ev,
            "distance": self.reading.distance_m,
            "detector pixel": self.reading.detector_pixel_m,
        }
        return told.get(name) is not None

    def coordinate(self, name: str, at: NumberAt | None, units: Mapping[str, float]) -> float | None:
        """The same where zero and less are allowed: a place on the detector or the object."""
        if at is None:
            return None
        places = at.at or (None,)
        for place in places:
            value = at.value if place is None else self.file.number(place)
            if value is not None:
                unit = at.unit if place is None else self.file.unit(place, at.unit)
                self.found[name] = f"{place or 'the mapping'}, in {unit}"
                return value * factor_of(unit, units, f"{self.file.path}: {place or name}")
        return None

    def frames(self, at: FramesAt) -> RawFrames:
        """The frames, of all datasets that the first place matches."""
        for place in at.at:
            datasets = self.file.matching(parted(place)[0])
            if datasets:
                self.found["frames"] = place if len(datasets) == 1 else f"{place}, {len(datasets)} datasets"
                return frames_at(self.file, *datasets, axes=at.axes)
        raise ScanError(f"{self.file.path}: there is no dataset {' or '.join(at.at)} with frames.")

    def positions(self, at: PositionsAt) -> Positions:
        """Positions (frame, 2) in metres or pixels; see `paired` for numbers that differ."""
        name = self.reading.positions or at.file
        source, table = self.file, None
        if name is not None:
            name = companion_name(self.file.path, name)
            if is_text(name):
                table = table_of(self.file, name)
            else:
                source = self.file.other(name)
        axes, unit = [], at.unit
        for label, places, sign in (("row", at.row, at.row_sign), ("column", at.column, at.column_sign)):
            values, place, unit = self._axis(source, places, table=table, unit=at.unit)
            self.found[f"positions, {label}"] = f"{name + ': ' if name else ''}{place}, in {unit}" + (
                ", sign turned" if sign < 0 else ""
            )
            axes.append(sign * values * (1.0 if unit == "pixel" else LENGTHS[unit]))
        if len(axes[0]) != len(axes[1]):
            raise ScanError(
                f"{self.file.path}: there are {len(axes[0])} positions along the rows and {len(axes[1])} "
                "along the columns; there must be as many of both."
            )
        return Positions(values=np.stack(axes, axis=1), unit="pixel" if unit == "pixel" else "m")

    def _axis(
        self, source: ScanFile, places: Sequence[str], *, table: Floats | None, unit: str
    ) -> tuple[Floats, str, str]:
        """Positions along one axis as they stand, where they were found, and in which unit they are."""
        if table is not None:
            number = int(places[0]) if places[0].isdigit() else -1
            if not 0 <= number < table.shape[1]:
                raise ScanError(
                    f"{source.path}: positions are in column {places[0]!r} of a text file that has columns 0 "
                    f"to {table.shape[1] - 1}; say in the mapping which one."
                )
            return table[:, number], f"column {number}", unit
        for place in places:
            path, part = parted(place)
            if source.find(path) is None:
                continue
            values = source.values(path)
            try:
                values = values[part] if part else values
            except IndexError as error:
                raise ScanError(
                    f"{source.path}: {path} of shape {values.shape} has no part {place}."
                ) from error
            stated = source.unit(path, unit)
            if stated != "pixel":
                factor_of(stated, LENGTHS, f"{source.path}: {path}")
            return values.reshape(-1).astype(np.float64), place, stated
        raise ScanError(f"{source.path}: there is no dataset {' or '.join(places)} with positions.")

    def image(self, name: str, places: Sequence[str], shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """An image of the detector (row, column), the mean where there are several; None if there is none."""
        place = self.place(places)
        if place is None:
            return None
        values = self.file.values(place, kinds="biuf").astype(np.float32)
        if values.ndim == 3:
            values = values.mean(axis=0)
        if values.shape != shape or not np.isfinite(values).all():
            raise ScanError(
                f"{self.file.path}: {place} is of shape {values.shape}; it must be finite numbers of the "
                f"shape of a frame, {shape}."
            )
        self.found[name] = place
        return values

    def mask(self, at: MaskAt | None, shape: tuple[int, int]) -> Mask | None:
        """Which pixels (row, column) a mask marks as bad; of masks for each frame, those bad in any."""
        if at is None or (place := self.place(at.at)) is None:
            return None
        values = self.file.values(place, kinds="biuf")
        if values.shape[-2:] != shape:
            raise ScanError(
                f"{self.file.path}: {place} is a mask of shape {values.shape}; frames are {shape}."
            )
        if values.dtype.kind == "f":
            if not np.array_equal(values, np.floor(values)):
                raise ScanError(f"{self.file.path}: {place} holds numbers that are not whole; no mask does.")
            values = values.astype(np.int64)
        flags = (
            values
            if at.bits is None or values.dtype.kind == "b"
            else values & np.array(at.bits, values.dtype)
        )
        each = (flags == 0) if at.good else (flags != 0)
        bad: Mask = np.any(each.reshape(-1, *shape), axis=0)
        if bad.all():
            raise ScanError(
                f"{self.file.path}: {place} marks every pixel as bad; good is {at.good} there. Turn that "
                "round in a mapping, or write the mask anew."
            )
        self.found["mask"] = f"{place}, {at.good} is good"
        return bad

    def monitor(self, places: Sequence[str], frames: int) -> Floats | None:
        """Photons that came in with each frame; None if there is no monitor."""
        place = self.place(places)
        if place is None:
            return None
        values = self.file.values(place).reshape(-1).astype(np.float64)
        if len(values) < frames or not (np.isfinite(values).all() and (values > 0).all()):
            raise ScanError(
                f"{self.file.path}: {place} has {len(values)} values from "
                f"{np.min(values, initial=np.inf):g}; a monitor needs one above zero for each of {frames} "
                "frames."
            )
        self.found["monitor"] = place
        return values[:frames]

    def object(self, at: ObjectAt | None, unit: str) -> ObjectPlace | str:
        """Where the reconstruction lies, or why there is none. unit: of the positions."""
        if at is None:
            return NO_OBJECT
        name = self.reading.reconstruction or at.file
        source = self if name is None else Finder(self.file.other(companion_name(self.file.path, name)))
        place = source.place(at.at)
        if place is None:
            return NO_OBJECT
        dataset = source.file.dataset(place)
        shape, layer, reason = shape_of_object(dataset, place)
        if shape is None:
            return reason
        pixel = source.number("object pixel", at.pixel, LENGTHS)
        units = PIXEL if unit == "pixel" else LENGTHS
        centre = [
            source.coordinate(f"object centre, {label}", part, units)
            for label, part in (("row", at.centre_row), ("column", at.centre_column))
        ]
        origin = np.zeros(2)
        if None not in centre:
            step = 1.0 if unit == "pixel" else pixel
            if step is None:
                return f"{place} does not say how large its pixels are, so the scan has no place in it"
            origin = np.array(centre, float) - np.array(shape) / 2 * step
        self.found["object"] = place if name is None else f"{source.file.path.name}: {place}"
        return ObjectPlace(
            path=source.file.path,
            at=place,
            shape=shape,
            origin=origin,
            layer=layer,
            pixel_m=pixel,
        )


def describe_mapped(
    file: ScanFile, mapping: ScanMapping, *, layout: str, reading: ScanReading | None = None
) -> ScanDescription:
    """The scan in an open file where a mapping says that it is; ScanError names what is missing or wrong."""
    finder = Finder(file, reading or ScanReading())
    counts = finder.frames(mapping.frames)
    positions = finder.positions(mapping.positions)
    place = finder.object(mapping.object, positions.unit)
    centre = [
        finder.coordinate(f"beam, {label}", at, PIXEL)
        for label, at in (("row", mapping.centre_row), ("column", mapping.centre_column))
    ]
    if mapping.orientation:
        finder.found["orientation"] = f"{mapping.orientation}: {in_words(mapping.orientation)}"
    shape = counts.stored_shape
    return paired(
        ScanDescription(
            layout=layout,
            counts=_turned(counts, mapping),
            positions=positions,
            object=None if isinstance(place, str) else place,
            no_object=place if isinstance(place, str) else "",
            bad=finder.mask(mapping.mask, shape),
            energy_ev=finder.number("energy", mapping.energy, ENERGIES),
            distance_m=finder.number("distance", mapping.distance, LENGTHS),
            detector_pixel_m=finder.number("detector pixel", mapping.detector_pixel, LENGTHS),
            centre_px=None if None in centre else (centre[0], centre[1]),  # type: ignore[arg-type]
            amplitude=mapping.frames.stored == "amplitude",
            negative=mapping.frames.negative,
            gap=mapping.frames.gap,
            dark=finder.image("dark", mapping.dark, shape),
            flat=finder.image("flat", mapping.flat, shape),
            monitor=finder.monitor(mapping.monitor, len(counts)),
            found=finder.found,
        ),
        file,
    )


def paired(description: ScanDescription, file: ScanFile) -> ScanDescription:
    """The same with as many frames as positions: a scan that was ended early has fewer frames.

    Raises:
        ScanError: more frames than positions, so that nobody knows which ones have none; or positions that
            are not finite.
    """
    frames, positions = len(description.counts), len(description.positions.values)
    if frames > positions:
        raise ScanError(
            f"{file.path}: there are {frames} frames and {positions} positions, and which frames have none "
            "is not known. Write as many positions as frames."
        )
    if not np.isfinite(description.positions.values[:frames]).all():
        raise ScanError(f"{file.path}: holds positions that are not finite; write them anew.")
    if frames == positions:
        return description
    return replace(
        description,
        positions=replace(description.positions, values=description.positions.values[:frames]),
        left_out={**description.left_out, "positions without a frame": positions - frames},
    )


def _turned(counts: RawFrames, mapping: ScanMapping) -> RawFrames:
    return replace(counts, corner=mapping.frames.corner, orientation=mapping.orientation)
