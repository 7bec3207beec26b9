"""A small simulated scan whose object, beam and positions are known, for phase retrieval."""

from __future__ import annotations

import numpy as np

from rehearsal_kit.data.labels.ambiguities import phase_error
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reconstructions import Reconstruction
from rehearsal_kit.data.simulated_beamline import simulate_counts, specimen

SIDE = 32
WELL_COVERED = 0.3


def known_sample(frames: int = 100) -> Reconstruction:
    """Stars under a defocused beam of 32 pixels, on a jittered raster of 10 columns, 5 pixels apart."""
    sample = specimen(3, 2, side=SIDE)
    raster = np.stack(np.divmod(np.arange(frames), 10), axis=1) * 5
    corners = raster + np.random.default_rng(0).integers(0, 3, raster.shape)
    rows, columns = corners.max(axis=0) + SIDE
    return Reconstruction(
        name="known",
        object=sample.object[:rows, :columns],
        probe=sample.probe,
        positions_px=corners + SIDE / 2,
        layout="specimen",
    )


def counts_of(sample: Reconstruction):
    return simulate_counts(sample, photons=1e6, seed=1)


def scan_of(folder, sample: Reconstruction, *, counts=None, positions_px=None, good_pixels=None):
    """The scan as a beamline without reconstruction writes it, opened."""
    acquisition = Acquisition(
        counts=counts_of(sample) if counts is None else counts,
        positions_px=sample.positions_px if positions_px is None else positions_px,
        good_pixels=good_pixels,
        simulated=True,
    )
    return open_scan(write_cxi(folder / "raw.cxi", acquisition))


def phase_error_of(label, scan, sample: Reconstruction) -> float:
    """Against the known object, where coverage is good, rad."""
    # The scan puts its first patch at the corner of whatever object there will be.
    corner = np.rint(label.origin_px + (sample.positions_px - scan.positions_px)[0]).astype(int)
    known = np.zeros(label.object.shape, np.complex64)
    rows, columns = sample.object.shape
    known[-corner[0] : rows - corner[0], -corner[1] : columns - corner[1]] = sample.object
    good = (label.coverage > WELL_COVERED) & (known != 0)
    return phase_error(label.object, known, label.coverage * good)


def modelled(label) -> np.ndarray:
    """Amplitudes (frame, row, column), DC in the centre, that a label stands for: its patches times its beam,
    which is moved by what positions lie between pixels."""
    side = label.probe.shape[-1]
    frequencies = np.fft.fftfreq(side)
    found = np.empty((len(label.positions_px), side, side))
    for number, corner in enumerate(label.positions_px - side / 2):
        row, column = np.floor(corner).astype(int)
        shift = np.outer(*(np.exp(-2j * np.pi * frequencies * part) for part in corner - (row, column)))
        probe = np.fft.ifft2(np.fft.fft2(label.probe) * shift)
        waves = np.fft.fft2(probe * label.object[row : row + side, column : column + side], norm="ortho")
        found[number] = np.fft.fftshift(np.sqrt((np.abs(waves) ** 2).sum(axis=0)))
    return found


def fourier_error_of(label, scan) -> float:
    """Relative Fourier amplitude error of a label, computed without the library."""
    counts, good = scan.frames(np.arange(len(scan))), scan.good_pixels
    difference = (modelled(label) - np.sqrt(counts))[:, good]
    return float(np.sqrt((difference**2).sum() / counts[:, good].sum(dtype=np.float64)))
