"""What frames leave open: constant and ramp of an object's phase, and its amplitude against the beam's.

An object times `c exp(i k x)` under a beam divided by that gives the same frames, at every position. So two
reconstructions are compared, and a network is trained, only after that was settled in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Waves = NDArray[np.complexfloating[Any, Any]]
Weights = NDArray[np.floating[Any]]
Ramp = NDArray[np.float64]
"""Radians per row and per column."""


def settled(wave: Waves, probe: Waves, weights: Weights) -> tuple[Waves, Waves]:
    """Object and probe, no frame changed, with a phase without constant and ramp and of median amplitude 1.

    wave: (row, column). probe: (mode, row, column). weights: how much each pixel of the object counts,
    (row, column).
    """
    slope = ramp(wave, weights)
    object_ = wave / _wave_of(slope, wave.shape)
    object_ = object_ * np.exp(-1j * np.angle((object_ * weights).sum()))
    amplitude = _median(np.abs(wave), weights)
    return object_ / amplitude, probe * _wave_of(slope, probe.shape[1:]) * amplitude


def ramp(wave: Waves, weights: Weights) -> Ramp:
    """The ramp without which phases agree best: the largest weighted sum of phase factors over the object.

    Phases need not be unwrapped for it. weights: (row, column).
    """
    amplitude = np.abs(wave)
    factors = np.divide(wave, amplitude, out=np.zeros_like(wave), where=amplitude > 0) * weights
    spectrum = np.abs(np.fft.fft2(factors))
    peak = np.unravel_index(int(spectrum.argmax()), spectrum.shape)
    rows, columns = (np.arange(size, dtype=np.float64) for size in wave.shape)
    steps = 2 * np.pi / np.array(wave.shape)
    start = np.array(
        [np.fft.fftfreq(size)[at] * 2 * np.pi for size, at in zip(wave.shape, peak, strict=True)]
    )

    def missed(slope: Ramp) -> float:
        return -float(np.abs(np.exp(-1j * slope[0] * rows) @ factors @ np.exp(-1j * slope[1] * columns)))

    corners = start + np.array([[0, 0], [0.4, 0], [0, 0.4]]) * steps
    options = {"initial_simplex": corners, "xatol": 1e-4 * steps.min(), "fatol": 0.0, "maxiter": 200}
    found: Ramp = minimize(missed, start, method="Nelder-Mead", options=options).x
    return found


def phase_error(wave: Waves, truth: Waves, weights: Weights) -> float:
    """Root of the weighted mean square of the difference in phase, rad, without constant and ramp.

    wave, truth, weights: (row, column), of the same shape.
    """
    quotient = wave * np.conj(truth)
    quotient = quotient / _wave_of(ramp(quotient, weights), wave.shape)
    quotient = quotient * np.exp(-1j * np.angle((quotient * weights).sum()))
    return float(np.sqrt((weights * np.angle(quotient) ** 2).sum() / weights.sum()))


def _wave_of(slope: Ramp, shape: tuple[int, ...]) -> Waves:
    rows, columns = (np.exp(1j * each * np.arange(size)) for each, size in zip(slope, shape, strict=True))
    return np.outer(rows, columns)


def _median(values: Weights, weights: Weights) -> float:
    order = np.argsort(values, axis=None, kind="stable")
    total = np.cumsum(weights.ravel()[order])
    return float(values.ravel()[order][np.searchsorted(total, total[-1] / 2)])
