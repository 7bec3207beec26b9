"""How good a network's outputs on one task are, over the batches and ranks that the task is spread over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups

PHASE_FIELDS = frozenset({"phase"})
"""Fields in rad, defined up to a multiple of 2 pi and up to a constant per scan."""
KINDS = ("class", "phase", "values")
"""What a target can be: a class index, a phase in rad, or any other real values."""

_SHAPES = {
    "class": "logits (sample, class) and targets (sample,)",
    "phase": "both of one shape (sample, ...)",
    "values": "both of one shape (sample, ...)",
}
_IMAGES_AT_ONCE = 32
_WINDOW = 11
"""Pixels along a side of the Gaussian window of SSIM (sigma 1.5)."""


def kinds_of(targets: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What each target field is, by dtype and name: an integer one is a "class", see `KINDS`.

    Raises SettingsError for a target that is neither of integers nor of real numbers.
    """
    kinds = {}
    for name, target in targets.items():
        if target.is_floating_point():
            kinds[name] = "phase" if name in PHASE_FIELDS else "values"
        elif target.dtype == torch.bool or target.is_complex():
            raise SettingsError(
                f"target {name!r} is of {target.dtype}; allowed are integers (classes) and floating point. "
                "Convert a bool to int64, and split a complex field into amplitude and phase."
            )
        else:
            kinds[name] = "class"
    return kinds


def wrap(angle: torch.Tensor) -> torch.Tensor:
    """The same angle in [-pi, pi), rad."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


@dataclass(frozen=True)
class Scores:
    """How good the outputs on one task are. A field of which no rank had a sample is in neither."""

    errors: dict[str, float]
    """Error by field: mean absolute error, or for classes the share of samples whose top-1 class is wrong;
    NaN where any prediction is not finite, or logits give no probabilities."""
    metrics: dict[str, float]
    """Metrics by "<field> <metric>". Classes: "top-1" and, of more than five classes, "top-5" (shares right).
    Other fields: "MAE", "MSE" and, for images, "PSNR" in dB (infinite without any error) and "SSIM".
    """


class TaskMetrics:
    """Scores of the samples of one task, spread over batches and ranks.

    kinds: what each target field is, one of `KINDS`: "class" has int64 targets (sample,) and logits
    (sample, class) as outputs, "phase" (rad) and "values" have floating targets and outputs of one shape
    (sample, ...). Every rank gives the same ones in the same order, also one without samples: they
    decide which collectives it joins.

    The phase of a reconstruction has a free constant. It is fitted once for the whole scan, as the circular
    mean of the difference, never per patch: a network must not be excused for a constant that changes
    from patch to patch. What is left is wrapped into [-pi, pi), and truth + what is left is scored.

    PSNR and SSIM are those of images (sample, channel, row, column) whose truth is not constant. Both take
    as data range maximum - minimum of the truth over all samples. PSNR is that of the mean squared error
    of all samples; SSIM (Wang et al. 2004, IEEE Trans. Image Process. 13, 600; Gaussian window of 11 x 11
    pixels, sigma 1.5, reflected borders) is the mean over images of at least 11 x 11 pixels.

    Raises SettingsError for an unknown kind.
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        for name, kind in kinds.items():
            if kind not in KINDS:
                raise SettingsError(
                    f"target {name!r} is of kind {kind!r}; allowed are {', '.join(KINDS)}. "
                    "kinds_of(targets) finds the kinds."
                )
        self._kinds = dict(kinds)
        self._hits = {
            name: torch.zeros(5, dtype=torch.float64) for name, kind in kinds.items() if kind == "class"
        }
        self._batches: dict[str, list[_Batch]] = {name: [] for name in kinds if name not in self._hits}

    def add(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
        """Add a batch: tensors (sample, ...) on the CPU, of any floating dtype. Other fields are ignored.

        Raises SettingsError where an output or a target of a field is missing, or their shapes differ.
        """
        for name, kind in self._kinds.items():
            _require(name, "output", outputs)
            _require(name, "target", targets)
            output, target = outputs[name].detach(), targets[name].detach()
            if not _fits(kind, output, target):
                raise SettingsError(
                    f"{name!r}: output {tuple(output.shape)} and target {tuple(target.shape)} do not fit; "
                    f"kind {kind!r} needs {_SHAPES[kind]}. Let the network return that, or give another kind."
                )
            if not target.numel():
                continue
            if kind == "class":
                self._hits[name] += _hits(output, target)
            else:
                truth = _at_least_single(target)
                self._batches[name].append(_Batch(truth, _at_least_single(output) - truth))

    def over_all(self, groups: ProcessGroups) -> Scores:
        """The scores of the samples of all ranks, the same on every rank. All ranks must call it."""
        scores = Scores({}, {})
        for name, kind in self._kinds.items():
            if kind == "class":
                found = _class_scores(self._hits[name], groups)
            else:
                found = _value_scores(self._batches[name], groups, phase=kind == "phase")
            if found:
                scores.errors[name] = 1 - found["top-1"] if kind == "class" else found["MAE"]
                scores.metrics.update({f"{name} {metric}": value for metric, value in found.items()})
        return scores


@dataclass(frozen=True)
class _Batch:
    """Truth (sample, ...) and output - truth, both of the same shape."""

    truth: torch.Tensor
    difference: torch.Tensor

    @property
    def has_images(self) -> bool:
        return self.truth.ndim == 4

    @property
    def fits_window(self) -> bool:
        return self.has_images and min(self.truth.shape[2:]) >= _WINDOW


def _hits(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Samples right in top-1 and in top-5, samples, those of them for which top-5 says something, and those
    whose logits give no probabilities, as NaN do not: as wrong ones alone nobody would see them.
    """
    logits = logits.float()
    hit = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
    samples = len(target)
    of_many = samples if logits.shape[1] > 5 else 0
    # Single classes may be at minus infinity: they are excluded.
    broken = int((~logits.logsumexp(dim=1).isfinite()).sum())
    return torch.tensor([hit[:, 0].sum(), hit.sum(), samples, of_many, broken], dtype=torch.float64)


def _class_scores(hits: torch.Tensor, groups: ProcessGroups) -> dict[str, float]:
    first, among_five, samples, of_many, broken = groups.sum(hits.clone()).tolist()
    if broken:
        first = among_five = math.nan
    scores = {"top-1": first / samples} if samples else {}
    return scores | ({"top-5": among_five / of_many} if of_many else {})


def _value_scores(batches: Sequence[_Batch], groups: ProcessGroups, *, phase: bool) -> dict[str, float]:
    empty = torch.zeros(0, dtype=torch.float64)
    difference = torch.cat([empty, *(batch.difference.double().flatten() for batch in batches)])
    if phase:
        turned = torch.stack([difference.cos().sum(), difference.sin().sum()])
        cosine, sine = groups.sum(turned).tolist()
        difference = wrap(difference - math.atan2(sine, cosine))
    data_range = _data_range(batches, groups)
    size = torch.tensor(float(difference.numel()), dtype=torch.float64)
    sums = torch.stack([difference.abs().sum(), difference.square().sum(), size])
    similar = _similarity(batches, difference, data_range) if data_range > 0 else torch.zeros(2).double()
    absolute, squared, count, similarity, images = groups.sum(torch.cat([sums, similar])).tolist()
    if not count:
        return {}
    mse = squared / count
    scores = {"MAE": absolute / count, "MSE": mse}
    if data_range > 0:
        scores["PSNR"] = 20 * math.log10(data_range) - 10 * math.log10(mse) if mse else math.inf
    return scores | ({"SSIM": similarity / images} if images else {})


def _data_range(batches: Sequence[_Batch], groups: ProcessGroups) -> float:
    """Maximum - minimum of the truth over the images of all ranks; 0 where there are none."""
    truths = [batch.truth for batch in batches if batch.has_images]
    own = [float(end) for truth in truths for end in truth.aminmax()]
    # As text: the groups can sum, but find no extremes. The digits of JSON give the same double back.
    ends = [end for text in groups.gather(json.dumps(own)) for end in json.loads(text)]
    return max(ends) - min(ends) if ends else 0.0


def _similarity(batches: Sequence[_Batch], difference: torch.Tensor, data_range: float) -> torch.Tensor:
    """Sum of the SSIM of the images, and how many they are. difference: of all batches, one after another."""
    # Only where it is needed: this import takes a second, and the start of a rank must not wait for it.
    from torchmetrics.functional.image import (  # noqa: PLC0415
        structural_similarity_index_measure as ssim,
    )

    found = torch.zeros(2, dtype=torch.float64)
    parts = difference.split([batch.truth.numel() for batch in batches])
    for batch, part in zip(batches, parts, strict=True):
        if not batch.fits_window:
            continue
        truth = batch.truth.flatten(0, 1)
        output = (truth + part.view(truth.shape)).float()
        for one, other in zip(output.split(_IMAGES_AT_ONCE), truth.split(_IMAGES_AT_ONCE), strict=True):
            # As channels of one sample, whose SSIM is the mean over them: the convolution is then one by
            # channel, which PyTorch does ten times faster on a CPU than one by sample.
            mean = cast(torch.Tensor, ssim(one[None], other[None].float(), data_range=data_range))
            found += torch.tensor([float(mean) * len(one), len(one)], dtype=torch.float64)
    return found


def _at_least_single(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _require(name: str, what: str, fields: Mapping[str, torch.Tensor]) -> None:
    if name not in fields:
        raise SettingsError(
            f"there is no {what} {name!r}, only {', '.join(fields) or 'none'}; it is needed: a network's "
            "outputs meet targets by field name. Name the network's outputs like the targets of the task."
        )


def _fits(kind: str, output: torch.Tensor, target: torch.Tensor) -> bool:
    if kind == "class":
        return output.ndim == 2 and target.shape == output.shape[:1]
    return output.shape == target.shape
