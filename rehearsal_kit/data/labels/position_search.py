"""Where the patches of a scan lie, if positions are wrong by so much that the object only blurs.

    frames, in two halves --fit--> two objects;  each frame --tries--> places in the object of the other half

An object that a frame was fitted to fits that frame best where it was taken to be, right or wrong. So frames
are tried in an object that they had no part in: at random places around the present one, in a narrowing
circle; where one fits better, the patch is taken to be there from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.randomness import generator, torch_seed
from rehearsal_kit.data.labels.cdtools_fit import CdtoolsFit, Found
from rehearsal_kit.data.labels.measured_frames import Floats, Measured

EPOCHS = 16
TRIES = 6
"""Places that each frame is tried at in an epoch."""
FIRST_REACH, LAST_REACH = 1 / 20, 1 / 180
"""Standard deviation of these places from the present one, in sides of a frame."""
FIRST_RATE, LAST_RATE = 0.04, 0.005
"""Adam's steps."""
EARLY_EPOCHS = 3
"""Fits before the first tries: there has to be an object."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionSearch:
    """How to look for positions."""

    batch: int
    """Frames that are fitted, or tried, at once."""
    farthest_px: float
    """No position is looked for farther away than this from where it is measured."""
    seed: int
    device: torch.device

    def found(self, measured: Measured, begin: Found, tell: Callable[[float], bool]) -> Floats:
        """First row and column of each patch (frame, 2). tell: told each error; whether to go on."""
        count = len(measured.counts)
        order = generator(self.seed, "halves").permutation(count)
        halves = [np.sort(order[half::2]) for half in (0, 1)]
        fits = [
            CdtoolsFit(measured, begin, margin_px=self.farthest_px, batch=self.batch, device=self.device)
            for _ in halves
        ]
        corners = measured.corners_px.copy()
        for epoch in range(EPOCHS):
            share = epoch / (EPOCHS - 1)
            rate = FIRST_RATE * (LAST_RATE / FIRST_RATE) ** share
            errors = [
                self._fitted(fit, half, rate=rate, epoch=epoch)
                for fit, half in zip(fits, halves, strict=True)
            ]
            reach = measured.side * FIRST_REACH * (LAST_REACH / FIRST_REACH) ** share
            moves = generator(self.seed, "tries", epoch).normal(0, reach, (TRIES, count, 2))
            for half, other in zip(halves, reversed(fits), strict=True):
                near = measured.corners_px[half]
                corners[half] = self._tried(
                    other, half, moves=moves[:, half], corners=corners[half], near=near
                )
            for fit in fits:
                fit.place(corners)
            if not tell(float(np.sqrt(np.mean(np.square(errors))))):
                break
        return corners

    def _fitted(self, fit: CdtoolsFit, half: NDArray[np.int64], *, rate: float, epoch: int) -> float:
        """Fit to one half of the frames; the error of the last time."""
        order = torch.Generator().manual_seed(torch_seed(self.seed, "order of a half", epoch))
        times = 1 if epoch else EARLY_EPOCHS
        return [fit.epoch(rate, moves_px=0, generator=order, frames=half) for _ in range(times)][-1]

    def _tried(
        self, other: CdtoolsFit, half: NDArray[np.int64], *, moves: Floats, corners: Floats, near: Floats
    ) -> Floats:
        """The best places (frame, 2) for frames of one half in the object of the other one.

        moves: by how much, (try, frame, 2). corners: where they are now. near: where they are measured.
        """
        best, least = corners, other.misfits(half, corners)
        for move in moves:
            places = np.clip(best + move, near - self.farthest_px, near + self.farthest_px)
            misfits = other.misfits(half, places)
            better = misfits < least
            best, least = np.where(better[:, None], places, best), np.where(better, misfits, least)
        return best
