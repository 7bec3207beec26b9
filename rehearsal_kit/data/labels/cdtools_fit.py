"""Phase retrieval by CDTools: object, beam and positions are fitted by gradients through the library's model.

The only file that knows the library. What it is given and gives are arrays in pixels of the object, which
needs neither wavelength nor distance: in the far field they say only how large such a pixel is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.data.labels.measured_frames import Floats, Measured

PACKAGE = "cdtools-py"

Wave = NDArray[np.complex64]

_AXES = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
"""The library's positions are (x, y, z): rows of the object lie along y, columns along x, a pixel is 1."""
_DARK = 1e-3
"""Square root of the background that the library adds to every pixel: none, in counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What was found so far, or what to begin with."""

    object: Wave
    """(row, column)."""
    probe: Wave
    """(mode, row, column)."""
    corners_px: Floats
    """First row and column of each patch (frame, 2), in pixels of the object."""


def library_version() -> str:
    """The version of the library that is installed; SettingsError that says what to install if none is."""
    _library()
    return version(PACKAGE)


class CdtoolsFit:
    """A phase retrieval under way, by Adam's steps on object, beam and positions.

    begin: its positions are those of `measured`. margin_px: how far they may move from there, 0 for not at
    all; patches must stay inside the object. batch: frames of a step.

    Raises:
        SettingsError: the library is not installed; says what to install.
    """

    def __init__(
        self, measured: Measured, begin: Found, *, margin_px: float, batch: int, device: torch.device
    ) -> None:
        models, reconstructors = _library()
        self._measured, self._margin = measured, margin_px
        frames, side = measured.counts.shape[:2]
        self._model = models.FancyPtycho(
            wavelength=1.0,
            detector_geometry={"basis": _AXES, "distance": 1.0},
            obj_basis=_AXES,
            probe_guess=torch.from_numpy(begin.probe),
            obj_guess=torch.from_numpy(begin.object),
            background=_DARK * torch.ones((side, side)),
            translation_offsets=torch.zeros((frames, 2)),
            weights=torch.ones(frames),
            mask=None if measured.good.all() else torch.from_numpy(measured.good),
            plot_level=0,
        ).to(device)
        self._model.background.requires_grad = False
        self._model.weights.requires_grad = False
        self._model.translation_offsets.requires_grad = margin_px > 0
        self._everything = torch.arange(frames)
        self._totals = measured.counts[:, measured.good].sum(axis=1, dtype=np.float64)
        self._batches = _Batches(measured, batch=batch, device=device, before_each=self._keep_inside)
        self._fit = reconstructors.AdamReconstructor(self._model, self._batches)
        self._fit.data_loader = self._batches

    def epoch(
        self,
        rate: float,
        *,
        moves_px: float,
        generator: torch.Generator,
        frames: NDArray[np.int64] | None = None,
    ) -> float:
        """Fit to every frame once; returns the relative Fourier amplitude error that was met on the way.

        That is the root of the sum of (modelled - measured amplitude)^2 over the sum of counts, in good
        pixels, each frame as it was modelled before its step. rate: of Adam's steps, where the largest
        amplitude of the beam is 1. moves_px: the same for positions, in pixels. generator: chooses the order
        of frames. frames: those that are fitted to; None: all of them.
        """
        self._batches.generator = generator
        self._batches.frames = self._everything if frames is None else torch.from_numpy(frames)
        self._fit.adjust_optimizer(lr=rate, lr_factors={"translation_offsets": moves_px / rate})
        loss = float(self._fit.run_epoch(calculation_width=self._batches.batch))
        self._keep_inside()
        some = self._batches.frames
        # The loss is a mean over good pixels of the frames that the first epoch of this fit has seen.
        pixels = int(self._measured.good.sum()) * len(some)
        return float(np.sqrt(loss * pixels / self._totals[some.numpy()].sum()))

    def misfits(self, frames: NDArray[np.int64], corners_px: Floats) -> Floats:
        """Sum of (modelled - measured amplitude)^2 of each of these frames (frame,), were they there.

        corners_px: (frame, 2), no farther than the margin from where they are measured.
        """
        found, model = np.empty(len(frames)), self._model
        with torch.no_grad():
            for first in range(0, len(frames), self._batches.batch):
                here = slice(first, first + self._batches.batch)
                (numbers, places), counts = self._batches.taken(torch.from_numpy(frames[here]))
                moved = torch.from_numpy(corners_px[here] - self._measured.corners_px[frames[here]])
                by = moved.to(places) - model.translation_offsets[numbers]  # the model adds those itself
                places[:, 0] += by[:, 1]
                places[:, 1] += by[:, 0]
                difference = model(numbers, places).sqrt() - counts.sqrt()
                if model.mask is not None:
                    difference = difference * model.mask
                found[here] = (difference**2).sum(dim=(1, 2)).cpu().numpy()
        return found

    def place(self, corners_px: Floats) -> None:
        """Take the patches of all frames to be there (frame, 2), no farther off than the margin."""
        moved = torch.from_numpy(corners_px - self._measured.corners_px)
        with torch.no_grad():
            self._model.translation_offsets.copy_(moved)
        self._keep_inside()

    def found(self) -> Found:
        """The object, the beam and the positions as they are now."""
        model = self._model
        moved = _array_of(model.translation_offsets).astype(np.float64)
        return Found(
            object=_array_of(model.obj),
            probe=_array_of(model.probe * model.probe_norm),
            corners_px=self._measured.corners_px + moved,
        )

    def _keep_inside(self) -> None:
        """Positions stay within the margin: the library cuts patches out of the object without looking."""
        with torch.no_grad():
            self._model.translation_offsets.clamp_(-self._margin, self._margin)


class _Batches:
    """The frames of a scan in another order in every epoch, as the library takes them.

    before_each: called before each batch, and so after each step.
    """

    def __init__(
        self, measured: Measured, *, batch: int, device: torch.device, before_each: Callable[[], None]
    ) -> None:
        self.batch = batch
        self.generator = torch.Generator()
        self.frames = torch.arange(len(measured.counts))
        self._device, self._before_each = device, before_each
        self._counts = torch.from_numpy(measured.counts)
        self._places = torch.zeros((len(measured.counts), 3), dtype=torch.float32)
        self._places[:, 0], self._places[:, 1] = torch.from_numpy(
            measured.corners_px.astype(np.float32)
        ).T.flip(0)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        order = self.frames[torch.randperm(len(self.frames), generator=self.generator)]
        for some in order.split(self.batch):
            self._before_each()
            yield self.taken(some)

    def taken(self, some: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Numbers, places and counts of some frames."""
        inputs = some.to(self._device), self._places[some].to(self._device)
        return inputs, self._counts[some].to(self._device)


def _array_of(tensor: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = tensor.detach().cpu().numpy()
    return found.copy()  # else it would change with the next step


def _library() -> tuple[Any, Any]:
    """Models and reconstructors of the library."""
    try:
        with warnings.catch_warnings():  # it silences a warning of torch for the whole process
            from cdtools import models, reconstructors  # noqa: PLC0415 - fetches matplotlib, too
    except ImportError as error:
        raise SettingsError(
            "phase retrieval is done by the package cdtools-py, which is missing; install "
            "rehearsal-kit[labels], which is pip install 'cdtools-py<0.4', or have the scans reconstructed "
            "elsewhere."
        ) from error
    return models, reconstructors
