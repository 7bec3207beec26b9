"""A reconstruction in a file of its own, taken together with the scan whose frames it was made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ReconstructionDescription, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile

WITHOUT_PLACE = "frames without a place in the reconstruction"


def with_reconstruction(
    scan: ScanDescription, file: ScanFile, reconstruction: ReconstructionDescription, *, name: str
) -> ScanDescription:
    """The scan with an object, and with the positions that it was reconstructed with.

    They were refined, so they count where it is known which frame each belongs to. file: the scan's own.
    name: of the file with the reconstruction.

    Raises:
        ScanError: positions of frames that the scan has not: the two files do not belong together.
    """
    numbers = _numbers(scan, file, reconstruction, name=name)
    found = {**scan.found}
    if reconstruction.place is not None:
        found["object"] = f"{name}: {reconstruction.place.at}"
    if numbers is not None:
        scan = _of_these_frames(scan, numbers)
        scan = replace(scan, positions=reconstruction.positions)
        for label in [each for each in found if each.startswith("positions")]:
            del found[label]
        found["positions"] = f"{name}, those that it was reconstructed with"
    elif scan.positions.unit != reconstruction.positions.unit:
        return replace(
            scan,
            no_object=f"the reconstruction in {name} has {len(reconstruction.positions.values)} positions in "
            f"{reconstruction.positions.unit}, the scan {len(scan.counts)} in {scan.positions.unit}: where "
            "the scan lies in it is not known",
        )
    elif reconstruction.place is not None:
        found["object"] += (
            f"; its {len(reconstruction.positions.values)} positions do not count: there are "
            f"{len(scan.counts)} frames"
        )
    for label in ("energy_ev", "distance_m"):
        told = getattr(reconstruction, label)
        known = getattr(scan, label) is not None or (label == "energy_ev" and scan.wavelength_m is not None)
        if told is not None and not known:
            scan = replace(scan, **{label: told})
            found[label.rsplit("_", 1)[0]] = name
    bad = reconstruction.bad
    if bad is not None and bad.shape == scan.counts.stored_shape:
        scan = replace(scan, bad=bad if scan.bad is None else bad | scan.bad)
        found["mask"] = f"{found['mask']}, and {name}" if "mask" in found else name
    return replace(
        scan, object=reconstruction.place, no_object=reconstruction.no_object or scan.no_object, found=found
    )


def _numbers(
    scan: ScanDescription, file: ScanFile, reconstruction: ReconstructionDescription, *, name: str
) -> NDArray[np.int64] | None:
    """The frames that its positions belong to; None where that is not known."""
    count, numbers = len(scan.counts), reconstruction.numbers
    positions = len(reconstruction.positions.values)
    if numbers is None:
        return np.arange(count) if positions == count else None
    if len(numbers) != positions or len(np.unique(numbers)) != positions:
        raise ScanError(
            f"{name}: says of {len(np.unique(numbers))} frames where they lie, with {positions} positions; "
            "there must be one for each."
        )
    if not positions or numbers.min() < 0 or numbers.max() >= count:
        raise ScanError(
            f"{name}: has {positions} positions{_of_frames(numbers)}, but {file.path} has frames 0 to "
            f"{count - 1}; the two do not belong together."
        )
    return numbers


def _of_frames(numbers: NDArray[np.int64]) -> str:
    return f" of frames {numbers.min()} to {numbers.max()}" if len(numbers) else ""


def _of_these_frames(scan: ScanDescription, numbers: NDArray[np.int64]) -> ScanDescription:
    """The scan with these frames only, in this order; the positions are still to be set."""
    count = len(scan.counts)
    if np.array_equal(numbers, np.arange(count)):
        return scan
    chosen = numbers if scan.counts.chosen is None else scan.counts.chosen[numbers]
    left_out = dict(scan.left_out)
    if len(numbers) < count:
        left_out[WITHOUT_PLACE] = count - len(numbers)
    return replace(
        scan,
        counts=replace(scan.counts, chosen=chosen),
        monitor=None if scan.monitor is None else scan.monitor[numbers],
        left_out=left_out,
    )
