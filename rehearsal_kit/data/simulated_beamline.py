"""A simulated beamline: samples and beams that differ from scan to scan, and the counts they would give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft2

from rehearsal_kit.base.errors import ScanError, SettingsError
from rehearsal_kit.base.limits import require_integer, require_number
from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.base.randomness import generator
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.reconstructions import (
    Reconstruction,
    is_measured,
    read_measured,
    read_reconstruction,
)
from rehearsal_kit.data.scans.scan import Floats, patch_corners

PHOTONS = 1e6
"""Mean photons per simulated frame."""
ENERGY_EV = 10_000.0
DISTANCE_M = 2.0
DETECTOR_PIXEL_M = 172e-6
"""Energy, distance and detector pixel of the simulated beamline; with 64 pixels a side, the pixel of the
object is 22.5 nm."""

_GRID = (24, 16)
"""Rows and columns of positions of a specimen's scan."""
_STEP_PX = 8
_JITTER_PX = 2

Counts = NDArray[np.uint16] | NDArray[np.uint32]


def simulate_counts(reconstruction: Reconstruction, *, photons: float, seed: int) -> Counts:
    """Far-field counts (frame, row, column), DC in the centre: sum over modes of |FFT(mode x patch)|^2.

    Frames are the probe's side rounded up to a power of two, so that a network's size divides them: zeros
    around the exit wave sample the same pattern more finely. The noise is Poisson's.

    Args:
        reconstruction: object, probe and positions; each frame sees the patch at the nearest whole pixel.
        photons: mean total counts of a frame.
        seed: of the noise.

    Returns:
        uint16, or uint32 where uint16 is too small.
    """
    photons = require_number("photons", photons, low=1.0, high=1e12)
    noise = generator(seed, "photons")
    intensities = _intensities(reconstruction)
    scale = photons * len(intensities) / intensities.sum(dtype=np.float64)
    brightest = float(intensities.max() * scale)
    if brightest > 2**31:  # Well below what uint32 holds, as the noise comes on top.
        raise SettingsError(
            f"photons is {photons:g}, which puts {brightest:g} into the brightest pixel of "
            f"{reconstruction.name}; at most 2^31 are allowed there."
        )
    counts = np.empty(intensities.shape, np.uint32)
    for drawn, expected in zip(counts, intensities, strict=True):
        drawn[:] = noise.poisson(expected * scale)
    return counts.astype(np.uint16) if counts.max() < 2**16 else counts


def _intensities(reconstruction: Reconstruction) -> NDArray[np.float32]:
    probe = reconstruction.probe
    within = probe.shape[-1]
    side = 1 << (within - 1).bit_length()
    corners = patch_corners(reconstruction.positions_px, within)
    if (corners < 0).any() or (corners + within > reconstruction.object.shape).any():
        raise ScanError(
            f"{reconstruction.name}: patches of {within} pixels begin at {corners.min(axis=0)} to "
            f"{corners.max(axis=0)} and leave the object of {reconstruction.object.shape}."
        )
    intensities = np.empty((len(corners), side, side), np.float32)
    for number, (row, column) in enumerate(corners):
        exit_waves = probe * reconstruction.object[row : row + within, column : column + within]
        intensities[number] = (np.abs(fft2(exit_waves, s=(side, side))) ** 2).sum(axis=0)
    centred: NDArray[np.float32] = np.fft.fftshift(intensities, axes=(1, 2))
    return centred


def specimen(seed: int, number: int, *, side: int = 64) -> Reconstruction:
    """A synthetic specimen under a beam of its own: what the beamline measures as scan `number`.

    The kinds take turns: balls, etched lines, a resolution star, grains. Beams differ in aperture, width
    and defocus, samples in contrast. Positions lie on a jittered raster of 24 x 16 whole pixels.

    Args:
        seed: of everything random in it.
        number: 0, 1, 2, ...
        side: pixels of a side of the probe.
    """
    number = require_integer("number", number, low=0)
    side = require_integer("side", side, low=16, high=4096)
    random = generator(seed, "specimen", number)
    kind = tuple(_KINDS)[number % len(_KINDS)]
    raster = np.indices(_GRID).reshape(2, -1).T * _STEP_PX
    corners = raster + random.integers(0, _JITTER_PX + 1, raster.shape)
    shape = (int(corners[:, 0].max()) + side, int(corners[:, 1].max()) + side)
    phase, amplitude = _CONTRASTS[number % len(_CONTRASTS)]
    density = _KINDS[kind](random, shape)
    wave = (1 - amplitude * density) * np.exp(1j * phase * density)
    return Reconstruction(
        name=f"{kind} {number}",
        object=wave.astype(np.complex64),
        probe=_probe(random, number, side),
        positions_px=corners.astype(np.float64) + side / 2,
        layout="specimen",
    )


def _balls(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Projected thickness of balls, 0..1."""
    rows, columns = np.indices(shape)
    thickness = np.zeros(shape)
    for row, column in _spread(random, shape, 18):
        radius = random.uniform(5, 10)
        squared = radius**2 - (rows - row) ** 2 - (columns - column) ** 2
        thickness = np.maximum(thickness, np.sqrt(np.maximum(squared, 0)) / 10)
    return thickness


def _lines(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Etched strokes of equal depth, upright and level, as of letters."""
    depth = np.zeros(shape)
    for row, column in _spread(random, shape, 20).astype(int):
        length, width = int(random.integers(18, 30)), int(random.integers(6, 9))
        rows, columns = (length, width) if random.random() < 0.5 else (width, length)
        depth[max(row, 0) : max(row + rows, 0), max(column, 0) : max(column + columns, 0)] = 1
    return depth


def _star(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Resolution stars side by side: spokes and rings around their centres."""
    rows, columns = (np.indices(shape) + random.uniform(0, 60, (2, 1, 1))) % 60 - 30
    spokes = np.sin(np.arctan2(rows, columns) * 6 + random.uniform(0, 2 * np.pi)) > 0
    rings = np.hypot(rows, columns) % 26 < 6
    return np.where(rings, 0.0, spokes.astype(float))


def _grains(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Cells around random points, each of an even thickness of its own."""
    points = _spread(random, shape, 20)
    levels = random.uniform(0, 1, len(points))
    rows, columns = np.indices(shape)
    nearest, thickness = np.full(shape, np.inf), np.zeros(shape)
    for (row, column), level in zip(points, levels, strict=True):
        distance = (rows - row) ** 2 + (columns - column) ** 2
        thickness = np.where(distance < nearest, level, thickness)
        nearest = np.minimum(distance, nearest)
    return thickness


def _spread(random: np.random.Generator, shape: tuple[int, int], step: int) -> Floats:
    """Random points (point, 2), one in each square of `step` pixels, so that every part is about as full."""
    counts = np.array(shape) // step + 2
    squares = np.indices(tuple(counts)).reshape(2, -1).T - 0.5
    return (squares + random.uniform(-0.5, 0.5, squares.shape)) * step


_KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "balls": _balls,
    "lines": _lines,
    "star": _star,
    "grains": _grains,
}
_CONTRASTS = ((-1.2, 0.2), (-0.9, 0.4), (-0.7, 0.5), (-1.5, 0.25))
"""Phase in rad and loss of amplitude where a specimen is thickest, one after the other."""


def _probe(random: np.random.Generator, number: int, side: int) -> NDArray[np.complex64]:
    """A defocused beam (1, row, column) behind an aperture, of a width of its own."""
    rows, columns = (np.indices((side, side)) - side / 2) / side  # cycles per pixel
    cut = random.uniform(0.34, 0.42)
    distance = np.hypot(rows, columns)
    aperture = (
        distance < cut,
        np.maximum(np.abs(rows), np.abs(columns)) < 0.9 * cut,
        (distance < 1.15 * cut) & (distance > 0.45 * cut),
        (np.abs(rows) < 1.1 * cut) & (np.abs(columns) < 0.75 * cut),
    )[number % 4]
    # The steepest phase sends light `reach` pixels from the axis.
    reach = (
        (random.uniform(13, 16) + 5 * (number // 4 % 2)) * side / 64
    )  # no aperture comes back with its beam
    wave = aperture * np.exp(-1j * np.pi * reach / cut * distance**2)
    focus = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(wave)))
    probe: NDArray[np.complex64] = focus.astype(np.complex64)[None]
    return probe / np.linalg.norm(probe)


@dataclass(frozen=True, kw_only=True)
class Beamline:
    """A simulated beamline that writes one CXI file after the other: scan_0000.cxi, scan_0001.cxi, ..."""

    folder: Path
    scans: int = 4
    interval_s: float = 10.0
    """Seconds from the end of one file to the beginning of the next."""
    seed: int = 0
    side: int = 64
    """Pixels of a side of the detector."""
    photons: float = PHOTONS

    def __post_init__(self) -> None:
        make_plain(self)
        require_integer("scans", self.scans, low=1, high=10_000)
        require_number("interval_s", self.interval_s, low=0.0, high=1e6)
        require_integer("side", self.side, low=16, high=4096)
        if self.side & (self.side - 1):
            raise SettingsError(f"side is {self.side}; it must be a power of two.")

    def write(self, number: int) -> Path:
        """Measure and reconstruct scan `number`; the file appears when it is whole."""
        sample = specimen(self.seed, number, side=self.side)
        self.folder.mkdir(parents=True, exist_ok=True)
        return write_cxi(
            self.folder / f"scan_{number:04d}.cxi",
            Acquisition(
                counts=simulate_counts(sample, photons=self.photons, seed=self.seed + number),
                positions_px=sample.positions_px,
                simulated=True,
                object=sample.object,
                probe=sample.probe,
                energy_ev=ENERGY_EV,
                distance_m=DISTANCE_M,
                detector_pixel_m=DETECTOR_PIXEL_M,
            ),
        )

    def run(self, stop: threading.Event) -> None:
        """Write all scans, one per interval, until done or told to stop; made for a thread."""
        for number in range(self.scans):
            if number and stop.wait(self.interval_s):
                return
            self.write(number)


def convert(path: str | Path, folder: str | Path, *, seed: int, photons: float = PHOTONS) -> Path:
    """A scan as a CXI file in `folder`; a .cxi, .h5 or .hdf5 file is returned as it is.

    Measured counts stay as they are. A reconstruction without counts gets simulated ones, and the file
    says so.

    Raises:
        ScanError: a file that is not a known reconstruction, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() in (".cxi", ".h5", ".hdf5"):
        return path
    target = Path(folder) / f"{path.stem}.cxi"
    if path.suffix.lower() == ".npz" and is_measured(path):
        return write_cxi(target, read_measured(path))
    found = read_reconstruction(path)
    within = found.probe.shape[-1]
    return write_cxi(
        target,
        Acquisition(
            counts=simulate_counts(found, photons=photons, seed=seed),
            # Where the simulated beam was: at whole pixels.
            positions_px=patch_corners(found.positions_px, within) + within / 2,
            simulated=True,
            object=found.object,
            probe=found.probe,
        ),
    )
