"""Losses of single samples; means over mini-batches and ranks are the learner's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from rehearsal_kit.base.errors import SettingsError

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[Tensors, Tensors], torch.Tensor]
"""Function from outputs and targets, named tensors (sample, ...), to the loss of each sample: (sample,)."""

NO_CLASSES = (
    "no target of this stream is a class, and the losses of ERACE, DERppACE and CLSER are about classes: "
    "take DERpp, ER(balance=...) or MeanER."
)


def supervised_loss(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Sum over the target fields of each one's loss, per sample: (sample,).

    An integer target (a class; the output is logits, (sample, class)): cross-entropy. A floating one:
    mean absolute error, the loss of PtychoNN (Cherukara et al. 2020) and of its continual learning
    (Bouvier et al. 2025), amplitude and phase with equal weight. Targets without an output are left out.
    """
    met = [name for name in targets if name in outputs]
    if not met:
        raise SettingsError(
            f"the network's outputs {', '.join(outputs)} meet none of the targets {', '.join(targets)}; "
            "name the outputs like the targets."
        )
    return torch.stack([_field_loss(outputs[name], targets[name]) for name in met]).sum(dim=0)


def among_present(outputs: Tensors, present: Mapping[str, torch.Tensor]) -> Tensors:
    """Outputs in which logits of classes that are not present are minus infinity: they do not compete.

    outputs: named tensors, logits as (sample, class). present: which classes are, by name of the target:
    bool (class,). SettingsError where there is no target of classes.
    """
    if not present:
        raise SettingsError(NO_CLASSES)
    masked = {name: outputs[name].masked_fill(~kept, -torch.inf) for name, kept in present.items()}
    return {**outputs, **masked}


def squared_distance(outputs: Tensors, stored: Tensors) -> torch.Tensor:
    """Sum over the fields of the mean squared difference to the stored outputs, per sample: (sample,).

    The distillation term of Dark Experience Replay (Buzzega et al., "Dark experience for general continual
    learning: a strong, simple baseline", NeurIPS 2020, equation 4), there between logits.
    """
    per_field = [
        _mean_of_each((outputs[name] - target.to(outputs[name].dtype)).square())
        for name, target in stored.items()
    ]
    return torch.stack(per_field).sum(dim=0)


def likelier(outputs: Tensors, others: Tensors, *, targets: Tensors) -> Tensors:
    """The logits that give the class of each sample the larger probability, the others where both are equal.

    outputs, others: what two networks make of the same samples, logits as (sample, class). targets: classes,
    (sample,). Outputs that meet no class are kept. What CLS-ER compares with (Arani et al., ICLR 2022).
    """
    chosen = dict(outputs)
    for name, target in targets.items():
        if name not in outputs or target.is_floating_point():
            continue
        label = target.long()[:, None]
        first, second = (made[name].log_softmax(dim=1).gather(1, label) for made in (outputs, others))
        chosen[name] = torch.where(first > second, outputs[name], others[name])
    return chosen


def _field_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if not target.is_floating_point():
        return functional.cross_entropy(output, target.long(), reduction="none")
    return _mean_of_each((output - target).abs())


def _mean_of_each(values: torch.Tensor) -> torch.Tensor:
    """Over everything but the sample axis; samples may be single numbers."""
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values
