"""What phase retrieval begins with where nothing is known of the beam: a guess from the frames alone."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

from rehearsal_kit.base.randomness import generator, torch_seed
from rehearsal_kit.data.labels.cdtools_fit import CdtoolsFit, Found, Wave
from rehearsal_kit.data.labels.measured_frames import Measured

SPREADS = (0.0, 0.09, -0.09, 0.18, -0.18, 0.3, -0.3)
"""Defocus that is tried: how far the outermost rays of the beam lie from its axis, in sides of a frame."""
_BESIDE = 0.05
"""And on both sides of the best of these by so much."""
_TRIED_FRAMES, _TRIED_BATCH, _TRIED_EPOCHS, _TRIED_RATE = 64, 8, 3, 0.03
"""One of these is told from the next by a few steps on frames that lie next to each other."""
_EDGE = 0.9
"""Share of all counts within the radius that is taken for the edge of the beam on the detector."""
_WEAK = 0.05
"""Largest amplitude of a mode that nothing is known of, where that of the first is 1."""


def guessed_beam(measured: Measured, *, seed: int) -> Wave:
    """The beam (1, row, column) that the mean frame belongs to, with the defocus that explains frames best.

    The mean frame has nearly the amplitude of the beam on the detector; what its phase is there, apart from
    defocus, is left to the retrieval.
    """
    middle = np.median(measured.corners_px, axis=0)
    count = min(_TRIED_FRAMES, len(measured.counts))
    nearest = cKDTree(measured.corners_px).query(middle, [*range(1, count + 1)])[1]
    some, _, shape = measured.some(nearest).placed(border=1)

    def error_of(spread: float) -> float:
        probe = defocused(measured, spread)
        begin = Found(object=np.ones(shape, np.complex64), probe=probe, corners_px=some.corners_px)
        fit = CdtoolsFit(some, begin, margin_px=0, batch=_TRIED_BATCH, device=torch.device("cpu"))
        order = torch.Generator().manual_seed(torch_seed(seed, "defocus"))  # the same for all
        return [fit.epoch(_TRIED_RATE, moves_px=0, generator=order) for _ in range(_TRIED_EPOCHS)][-1]

    errors = {spread: error_of(spread) for spread in SPREADS}
    near = min(errors, key=errors.__getitem__)
    errors |= {spread: error_of(spread) for spread in (near - _BESIDE, near + _BESIDE)}
    return defocused(measured, min(errors, key=errors.__getitem__))


def defocused(measured: Measured, spread: float) -> Wave:
    """The beam (1, row, column) of the mean frame, of which the outermost rays lie off its axis.

    spread: how far, in sides of a frame; its sign says on which side of the sample the focus is.
    """
    mean = measured.counts.mean(axis=0, dtype=np.float64) * measured.good
    rows, columns = np.indices(mean.shape) - np.array(mean.shape).reshape(2, 1, 1) // 2
    squared = (rows**2 + columns**2) / mean.shape[0] ** 2  # (cycles per pixel)^2
    order = np.argsort(squared, axis=None, kind="stable")
    total = np.cumsum(mean.ravel()[order])
    edge = np.sqrt(squared.ravel()[order][np.searchsorted(total, _EDGE * total[-1])])
    wave = np.sqrt(mean) * np.exp(-1j * np.pi * spread * mean.shape[0] / edge * squared)
    beam = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(wave), norm="ortho"))
    return as_strong(beam.astype(np.complex64)[None], measured)


def as_strong(probe: Wave, measured: Measured) -> Wave:
    """The beam (mode, row, column) with as much intensity as the mean frame has counts."""
    intensity = float((np.abs(probe) ** 2).sum(dtype=np.float64))
    strong: Wave = (probe * np.sqrt(measured.total / len(measured.counts) / intensity)).astype(np.complex64)
    return strong


def with_modes(probe: Wave, modes: int, *, seed: int) -> Wave:
    """The beam (mode, row, column) with so many modes: the first ones of it, and weak noise as the others."""
    missing = modes - len(probe)
    if missing <= 0:
        return probe[:modes]
    random = generator(seed, "modes")
    noise = random.uniform(-1, 1, (missing, *probe.shape[1:], 2)) @ np.array([1, 1j])
    weak = noise * _WEAK * np.abs(probe[0]).max() / np.sqrt(2)
    return np.concatenate([probe, weak.astype(np.complex64)])
