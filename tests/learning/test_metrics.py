"""Errors and metrics of one task, against plain numpy and against torchmetrics on all samples at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ranks import on_ranks
from scipy.ndimage import gaussian_filter

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.learning.metrics import Scores, TaskMetrics, kinds_of

ALONE = ProcessGroups(0, 1)
KINDS = {"amplitude": "values", "phase": "phase", "label": "class"}
SAMPLES = 70


def samples(side: int = 16) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs and targets; more images than SSIM takes at once, and a phase off by a constant and turns."""
    source = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(SAMPLES, *shape, generator=source)

    amplitude, phase = 1 + 0.2 * normal(1, side, side), normal(1, side, side)
    turns = 2 * math.pi * torch.randint(-2, 3, phase.shape, generator=source)
    targets = {
        "amplitude": amplitude,
        "phase": phase,
        "label": torch.randint(0, 8, (SAMPLES,), generator=source),
    }
    outputs = {
        "amplitude": amplitude + 0.1 * normal(1, side, side),
        "phase": phase + 0.3 * normal(1, side, side) + 2.5 + turns,
        "label": normal(8),
    }
    return outputs, targets


def part(fields: dict[str, torch.Tensor], share: slice) -> dict[str, torch.Tensor]:
    return {name: values[share] for name, values in fields.items()}


def scored(outputs, targets, *, kinds=None, groups=ALONE, shares=(slice(None),)) -> Scores:
    metrics = TaskMetrics(kinds or kinds_of(targets))
    for share in shares:
        metrics.add(part(outputs, share), part(targets, share))
    return metrics.over_all(groups)


def ssim_in_numpy(output: np.ndarray, truth: np.ndarray, data_range: float) -> float:
    """Wang et al. 2004, each image (row, column) by itself, then the mean."""

    def blurred(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, mode="mirror", truncate=3.5)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for x, y in zip(output[:, 0].astype(float), truth[:, 0].astype(float), strict=True):
        mx, my = blurred(x), blurred(y)
        vx, vy, vxy = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
        index = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        found.append(index.mean())
    return float(np.mean(found))


def in_numpy(output: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    difference, data_range = output - truth, truth.max() - truth.min()
    mse = (difference**2).mean()
    return {
        "MAE": abs(difference).mean(),
        "MSE": mse,
        "PSNR": 10 * np.log10(data_range**2 / mse),
        "SSIM": ssim_in_numpy(output, truth, data_range),
    }


def test_every_number_of_values_and_phase_is_that_of_plain_numpy():
    outputs, targets = samples()
    scores = scored(outputs, targets, shares=(slice(0, 40), slice(40, None)))
    amplitude, truth = (fields["amplitude"].double().numpy() for fields in (outputs, targets))
    expected = in_numpy(amplitude, truth)
    phase, truth = (fields["phase"].double().numpy() for fields in (outputs, targets))
    mean = np.angle(np.exp(1j * (phase - truth)).mean())
    fitted = truth + np.angle(np.exp(1j * (phase - truth - mean)))
    for field, numbers in (("amplitude", expected), ("phase", in_numpy(fitted, truth))):
        for metric, number in numbers.items():
            assert scores.metrics[f"{field} {metric}"] == pytest.approx(number, rel=2e-5), (field, metric)
        assert scores.errors[field] == scores.metrics[f"{field} MAE"]
    assert 0.2 < scores.metrics["phase SSIM"] < 0.99


def test_psnr_and_ssim_are_those_of_torchmetrics_on_all_samples_at_once():
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    outputs, targets = samples()
    wide = [torch.cat([f["amplitude"], f["phase"]], dim=1) for f in (outputs, targets)]
    data_range = float(wide[1].max() - wide[1].min())
    scores = scored({"both": wide[0]}, {"both": wide[1]}, shares=(slice(0, 3), slice(3, None)))
    assert scores.metrics["both PSNR"] == pytest.approx(
        float(peak_signal_noise_ratio(*wide, data_range=data_range)), rel=1e-5
    )
    assert scores.metrics["both SSIM"] == pytest.approx(
        float(structural_similarity_index_measure(*wide, data_range=data_range)), rel=1e-5
    )


def test_top_1_and_top_5_by_hand():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]])
    scores = scored({"label": logits}, {"label": torch.tensor([0, 0, 4])})
    assert scores.errors == pytest.approx({"label": 2 / 3})
    assert scores.metrics == pytest.approx({"label top-1": 1 / 3, "label top-5": 2 / 3})


@pytest.mark.parametrize("broken", [[torch.nan] * 6, [1.0, torch.nan, 0, 0, 0, 0], [torch.inf, *[1] * 5]])
def test_classes_without_probabilities_are_no_wrong_answers_but_no_numbers(broken):
    labels = torch.tensor([0, 1, 2])
    logits = torch.eye(6)[:3]
    logits[:, 5] = -torch.inf  # a class that is excluded
    assert scored({"label": logits}, {"label": labels}).errors == {"label": 0.0}
    logits[1] = torch.tensor(broken)
    scores = scored({"label": logits}, {"label": labels}, shares=(slice(0, 1), slice(1, None)))
    assert math.isnan(scores.errors["label"])
    assert all(map(math.isnan, scores.metrics.values()))


def test_top_5_says_nothing_of_five_classes():
    scores = scored({"label": torch.eye(5)}, {"label": torch.tensor([0, 1, 2, 3, 0])})
    assert scores.metrics == pytest.approx({"label top-1": 0.8})


def phases() -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.linspace(-3, 3, 40).reshape(10, 1, 2, 2)
    noise = torch.tensor([0.05, -0.05]).repeat(20).reshape(10, 1, 2, 2)
    return truth, noise


def test_the_free_constant_of_a_scan_and_whole_turns_are_no_error():
    truth, noise = phases()
    scores = scored({"phase": truth + noise + 2.5 + 2 * math.pi}, {"phase": truth})
    assert scores.errors["phase"] == pytest.approx(0.05, abs=1e-6)


def test_a_constant_that_differs_from_patch_to_patch_is_an_error():
    truth, _ = phases()
    turned = truth + torch.linspace(-0.5, 0.5, 10).reshape(10, 1, 1, 1)
    assert scored({"phase": turned}, {"phase": truth}).errors["phase"] > 0.2


def test_numbers_need_what_they_are_made_of():
    def names(truth: torch.Tensor) -> set[str]:
        found = {name.removeprefix("x ") for name in scored({"x": truth + 1}, {"x": truth}).metrics}
        return found & {"MAE", "MSE", "PSNR", "SSIM"}

    assert names(torch.rand(4, 2)) == {"MAE", "MSE"}
    assert names(torch.rand(4, 1, 10, 16)) == {"MAE", "MSE", "PSNR"}
    assert names(torch.rand(4, 2, 11, 16)) == {"MAE", "MSE", "PSNR", "SSIM"}
    assert names(torch.ones(4, 1, 16, 16)) == {"MAE", "MSE"}
    assert names(torch.rand(0, 1, 16, 16)) == set()


def test_no_error_at_all_is_an_infinite_psnr_and_an_ssim_of_one():
    truth = torch.rand(4, 1, 16, 16)
    metrics, best = (
        scored({"x": truth}, {"x": truth}).metrics,
        {"MAE": 0, "MSE": 0, "PSNR": math.inf, "SSIM": 1},
    )
    assert {name: metrics[f"x {name}"] for name in best} == pytest.approx(best)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_of_half_precision_are_scored_in_full_precision(dtype):
    outputs, targets = samples()
    halves = {name: output.to(dtype) for name, output in outputs.items()}
    assert scored(halves, targets) == scored({n: h.float() for n, h in halves.items()}, targets)


def test_other_fields_are_ignored_and_a_missing_one_is_named():
    outputs, targets = samples()
    assert set(scored(outputs, targets, kinds={"phase": "phase"}).errors) == {"phase"}
    metrics = TaskMetrics(KINDS)
    renamed = {"amplitudes": outputs["amplitude"], "phase": outputs["phase"]}
    with pytest.raises(SettingsError, match="no output 'amplitude', only amplitudes, phase"):
        metrics.add(renamed, targets)
    with pytest.raises(SettingsError, match="no target 'label'"):
        metrics.add(outputs, {name: targets[name] for name in ("amplitude", "phase")})


@pytest.mark.parametrize(
    ("kind", "output", "target"),
    [
        ("values", (4, 1), (4,)),
        ("phase", (4, 1, 2, 2), (4, 2, 2)),
        ("class", (4,), (4,)),
        ("class", (4, 9), (4, 9)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kind, output, target):
    with pytest.raises(SettingsError, match="do not fit"):
        TaskMetrics({"x": kind}).add({"x": torch.zeros(output)}, {"x": torch.zeros(target)})


def test_kinds_follow_dtype_and_name():
    assert kinds_of(samples()[1]) == KINDS
    assert kinds_of({"phase": torch.zeros(2).half(), "y": torch.zeros(2).int()}) == {
        "phase": "phase",
        "y": "class",
    }
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(SettingsError, match="allowed are integers"):
            kinds_of({"phase": torch.zeros(2, dtype=dtype)})
    with pytest.raises(SettingsError, match="allowed are class, phase, values"):
        TaskMetrics({"label": "classes"})


def on_one_of_two(groups: ProcessGroups) -> list[Scores]:
    """Unequal parts, all on rank 0, all on rank 1, and nothing on either."""
    outputs, targets = samples()
    splits = [(slice(0, 50), slice(50, None)), (slice(None), None), (None, slice(None)), (None, None)]
    return [
        scored(outputs, targets, groups=groups, shares=[split[groups.rank]] if split[groups.rank] else [])
        for split in splits
    ]


def test_two_ranks_give_the_scores_of_the_whole_also_where_one_has_no_sample(tmp_path):
    first, second = on_ranks(2, tmp_path, on_one_of_two)
    assert first == second
    whole = scored(*samples())
    assert {"amplitude SSIM", "phase SSIM", "label top-1", "label top-5"} <= whole.metrics.keys()
    assert first.pop() == Scores({}, {})
    for scores in first:
        assert scores.errors == pytest.approx(whole.errors, rel=1e-9)
        assert scores.metrics == pytest.approx(whole.metrics, rel=1e-6)
