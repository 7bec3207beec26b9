"""Phase retrieval: the object under a scan from its frames and positions, for scans without reconstruction.

    scan --frames with beam--> first_guess.py --epochs of cdtools_fit.py--> ambiguities.py --> label

The error that is told after each epoch is the relative Fourier amplitude error: the root of the sum of
(modelled - measured amplitude)^2 over the sum of counts, over all good pixels of all frames, where amplitudes
are square roots of counts and each frame is modelled as it was just before the step that it had a part in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError, SettingsError
from rehearsal_kit.base.limits import Real, require_integer, require_one_of, require_or
from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.base.randomness import torch_seed
from rehearsal_kit.data.labels.ambiguities import Waves, settled
from rehearsal_kit.data.labels.cdtools_fit import PACKAGE, CdtoolsFit, Found, library_version
from rehearsal_kit.data.labels.first_guess import as_strong, defocused, guessed_beam, with_modes
from rehearsal_kit.data.labels.label import COVERED, Label, LabelSource, Wave
from rehearsal_kit.data.labels.measured_frames import Floats, Measured, measured_in
from rehearsal_kit.data.labels.position_search import PositionSearch
from rehearsal_kit.data.scans.scan import Scan

FIRST_RATE, LAST_RATE = 0.05, 0.005
"""Adam's steps in the first epoch and the last one; the largest amplitude of beam and object is about 1."""
FIRST_RATE_BEGUN = 0.02
"""The first one where there is an object to begin with: larger steps would undo it."""
FIRST_MOVE_PX, LAST_MOVE_PX = 0.4, 0.08
"""The same for positions."""
CORRECTIONS = ("no", "refine", "search")
STILL_EPOCHS = 2
"""Epochs before positions are corrected: there has to be an object to which they can be compared."""
FARTHEST = 1 / 4
"""A position is corrected by no more than this, in sides of a frame."""
RIM_PX = 2
"""The object reaches beyond all patches by this."""
Tell = Callable[[int, float], bool]
"""Told each epoch, from 1, and its error; whether to go on."""


@dataclass(frozen=True, kw_only=True)
class PhaseRetrieval:
    """How labels are made of scans that bring none."""

    epochs: int = 30
    """How often every frame is fitted at most; steps become smaller towards the last."""
    good_enough: float | None = None
    """It ends earlier once an epoch has this relative Fourier amplitude error; None: it does not."""
    modes: int = 3
    """Incoherent modes of the beam. Time and memory grow with them."""
    correct_positions: str = "no"
    """"no"; "refine" them, where they are wrong by a pixel or two; or "search" for them first, where objects
    only blur: that takes sixteen epochs more, of four times the work each. By up to a quarter of a frame.
    What was measured of both stands in DECISIONS.md."""
    batch: int = 16
    """Frames that are fitted at once."""
    spread: float | None = None
    """Defocus of a beam that nothing is known of: how far its outermost rays lie from the axis, in sides of a
    frame, less than 0 on the other side of the focus; None: some are tried."""
    threads: int = 1
    """Threads of torch. Another number, or another device, may give other last digits."""
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        require_integer("epochs", self.epochs, low=1, high=100_000)
        require_or(Real(1e-6, 1.0), "good_enough", self.good_enough, other=None)
        require_integer("modes", self.modes, low=1, high=64)
        require_one_of("correct_positions", self.correct_positions, CORRECTIONS)
        require_integer("batch", self.batch, low=1, high=2**16)
        require_or(Real(-1.0, 1.0), "spread", self.spread, other=None)
        require_integer("threads", self.threads, low=1, high=1024)
        require_integer("seed", self.seed, low=0)

    def rate(self, epoch: int, *, begun: bool) -> float:
        """Size of Adam's steps in an epoch, from 1. begun: whether there is an object to begin with."""
        return _between(FIRST_RATE_BEGUN if begun else FIRST_RATE, LAST_RATE, self._done(epoch))

    def move_px(self, epoch: int) -> float:
        """The same for positions, in pixels."""
        if self.correct_positions == "no" or epoch <= STILL_EPOCHS:
            return 0.0
        return _between(FIRST_MOVE_PX, LAST_MOVE_PX, self._done(epoch))

    def _done(self, epoch: int) -> float:
        return (epoch - 1) / max(self.epochs - 1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """What phase retrieval begins with, as far as it is known."""

    probe: Wave | None = field(default=None, repr=False)
    """The beam (mode, row, column), for example of the scan before: its strength does not matter."""
    object: NDArray[Any] | None = field(default=None, repr=False)
    """The object (row, column), for example as a network predicts it, of median amplitude 1; what is 0 or not
    finite is unknown."""
    origin_px: tuple[float, float] = (0.0, 0.0)
    """Where its corner lies, row and column, in the pixels in which the scan has its positions."""


def retrieve(
    scan: Scan,
    settings: PhaseRetrieval,
    *,
    start: Start | None = None,
    tell: Tell | None = None,
    device: str | torch.device = "cpu",
) -> Label:
    """The label of a scan, by the package cdtools-py. All its frames are held in memory, as float32.

    Frames without beam are left out. Bad pixels are left free: whatever is counted there changes nothing.
    With the same seed, threads and device it gives the same bits.

    Args:
        scan: is read once; the side of its patches must be that of its frames.
        settings: how.
        start: beam and object to begin with; what is not given is guessed from the frames.
        tell: told each epoch, from 1, and its relative Fourier amplitude error; whether to go on. Those of a
            search for positions come first.
        device: of torch.

    Raises:
        SettingsError: the package is missing, or a beam or object to begin with that does not fit.
        ScanError: frames that cannot be read, fewer than four with beam, positions that do not overlap, or a
            fit that comes to nothing.
    """
    version = library_version()
    everything, lit = measured_in(scan)
    farthest = 0.0 if settings.correct_positions == "no" else FARTHEST * everything.side
    used = everything if lit.all() else everything.some(lit)  # which copies
    measured, corner, shape = used.placed(border=int(np.ceil(farthest)) + RIM_PX)
    device, told = torch.device(device), _Told(settings, tell, scan.path)
    begun = start is not None and start.object is not None
    with _threads(settings.threads):
        begin = _begin(measured, settings, start or Start(), corner=corner, shape=shape)
        placed = begin.corners_px
        if settings.correct_positions == "search":
            search = PositionSearch(
                batch=settings.batch, farthest_px=farthest, seed=settings.seed, device=device
            )
            placed = search.found(measured, begin, told.go_on)
        fit = CdtoolsFit(measured, begin, margin_px=farthest, batch=settings.batch, device=device)
        fit.place(placed)
        _fit(fit, settings, told, begun=begun)
        found = fit.found()
    drift = (found.corners_px - begin.corners_px).mean(axis=0)
    corners = everything.corners_px - corner + drift
    corners[lit] = found.corners_px
    coverage = _coverage(found)
    object_, probe = settled(found.object, found.probe, coverage * (coverage >= COVERED))
    return Label(
        object=object_.astype(np.complex64),
        origin_px=(float(corner[0] - drift[0]), float(corner[1] - drift[1])),
        pixel_m=scan.object_pixel_m,
        probe=_by_strength(probe),
        coverage=coverage.astype(np.float32),
        positions_px=corners + everything.side / 2,
        errors=tuple(told.errors),
        source=LabelSource(
            library=PACKAGE,
            version=version,
            settings=asdict(settings),
            scan=scan.path.name,
            digest=everything.digest,
        ),
    )


def _between(first: float, last: float, share: float) -> float:
    """A number on the way from the first to the last one, along which it falls by equal factors."""
    return float(first * (last / first) ** share)


def _begin(
    measured: Measured, settings: PhaseRetrieval, start: Start, *, corner: Floats, shape: tuple[int, int]
) -> Found:
    """Beam and object to begin with, in an object of this shape whose corner lies there."""
    probe = start.probe
    if probe is None and settings.spread is not None:
        probe = defocused(measured, settings.spread)
    elif probe is None:
        probe = guessed_beam(measured, seed=settings.seed)
    elif probe.ndim != 3 or probe.shape[1:] != (measured.side,) * 2 or not np.isfinite(probe).all():
        raise SettingsError(
            f"the beam to begin with is {probe.shape}; it must be finite, and (mode, row, column) with "
            f"{measured.side} rows and columns, as the frames."
        )
    object_ = np.ones(shape, np.complex64)
    if start.object is not None:
        _lay(start.object, object_, at=np.rint(np.array(start.origin_px) - corner).astype(int))
    modes = with_modes(probe.astype(np.complex64), settings.modes, seed=settings.seed)
    return Found(object=object_, probe=as_strong(modes, measured), corners_px=measured.corners_px)


def _lay(image: NDArray[Any], onto: Wave, *, at: NDArray[np.int64]) -> None:
    """Lay what is known of an image onto another one, where their first pixels differ by `at`."""
    if image.ndim != 2:
        raise SettingsError(f"the object to begin with is {image.shape}; it must be (row, column).")
    first = np.maximum(at, 0)
    last = np.minimum(at + image.shape, onto.shape)
    if (last <= first).any():
        raise SettingsError(
            f"the object to begin with has {image.shape} pixels and begins at {at}, all of it outside the "
            f"{onto.shape} that patches lie in; give its origin_px in the pixels of the scan's positions."
        )
    there = onto[first[0] : last[0], first[1] : last[1]]
    (row, column), (rows, columns) = first - at, last - first
    here = image[row : row + rows, column : column + columns]
    known = np.isfinite(here) & (here != 0)
    there[known] = here[known]


class _Told:
    """The errors of all epochs so far, of a search and of the fit, and whether somebody wishes to go on."""

    def __init__(self, settings: PhaseRetrieval, tell: Tell | None, path: Path) -> None:
        self.errors: list[float] = []
        self._settings, self._tell, self._path = settings, tell, path

    def go_on(self, error: float) -> bool:
        """Take one more error; ScanError if it is none."""
        self.errors.append(error)
        if not np.isfinite(error):
            raise ScanError(
                f"{self._path}: phase retrieval came to nothing in epoch {len(self.errors)}: its error is "
                f"{error}. Are positions and the beam to begin with those of this scan?"
            )
        wished = self._tell is None or self._tell(len(self.errors), error)
        enough = self._settings.good_enough
        return wished and (enough is None or error > enough)


def _fit(fit: CdtoolsFit, settings: PhaseRetrieval, told: _Told, *, begun: bool) -> None:
    """Fit to all frames, epoch by epoch, until one is good enough or there is no wish to go on."""
    for epoch in range(1, settings.epochs + 1):
        order = torch.Generator().manual_seed(torch_seed(settings.seed, "order of frames", epoch))
        rate = settings.rate(epoch, begun=begun)
        if not told.go_on(fit.epoch(rate, moves_px=settings.move_px(epoch), generator=order)):
            return


def _coverage(found: Found) -> Floats:
    """Intensity of the beam that each pixel has seen (row, column); the largest is 1."""
    beam = (np.abs(found.probe) ** 2).sum(axis=0, dtype=np.float64)
    side = len(beam)
    seen = np.zeros(found.object.shape)
    for row, column in np.rint(found.corners_px).astype(int):
        seen[row : row + side, column : column + side] += beam
    seen /= seen.max()
    return seen


def _by_strength(probe: Waves) -> Wave:
    """Modes that are orthogonal, the strongest first; together they give the same frames."""
    _, strengths, modes = np.linalg.svd(probe.reshape(len(probe), -1), full_matrices=False)
    ordered: Wave = (strengths[:, None] * modes).reshape(probe.shape).astype(np.complex64)
    return ordered


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Threads of torch while the block lasts; what they were before, afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
