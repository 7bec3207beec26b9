import math

import pytest
import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.learning.networks.ptychonn import PtychoNN


@pytest.mark.parametrize(("size", "parameters"), [("original", 1_247_074), ("paper", 4_694_690)])
def test_published_sizes_have_their_number_of_parameters(size, parameters):
    assert sum(weights.numel() for weights in PtychoNN(size=size).parameters()) == parameters


@pytest.mark.parametrize(("size", "side"), [("small", 32), ("original", 64), ("paper", 32)])
def test_amplitude_and_phase_have_the_shape_of_the_pattern(size, side):
    outputs = PtychoNN(size=size)(torch.rand(2, 1, side, side))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {
        "amplitude": (2, 1, side, side),
        "phase": (2, 1, side, side),
    }


def test_the_phase_stays_within_pi_and_the_amplitude_is_free():
    outputs = PtychoNN(seed=1)(1e4 * torch.rand(4, 1, 32, 32))
    assert outputs["phase"].abs().max() <= math.pi + 1e-6
    assert outputs["amplitude"].abs().max() > math.pi


def test_weights_depend_on_the_seed_alone_and_the_callers_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = PtychoNN(seed=4)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again, other = PtychoNN(seed=4), PtychoNN(seed=5)
    for name, values in first.state_dict().items():
        assert torch.equal(values, again.state_dict()[name])
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert PtychoNN(**first.arguments).arguments == {"size": "small", "seed": 4}


def test_both_heads_train_the_shared_encoder():
    for head in ("amplitude", "phase"):
        network = PtychoNN()
        network(torch.rand(2, 1, 32, 32))[head].sum().backward()
        assert network.encoder[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 1, 30, 32), (2, 32, 32), (2, 2, 32, 32)])
def test_shapes_that_pools_cannot_halve_are_refused(shape):
    with pytest.raises(SettingsError, match=r"diffraction has shape .*multiples of"):
        PtychoNN()(torch.rand(shape))


@pytest.mark.parametrize("wrong", [{"size": "large"}, {"seed": -1}])
def test_settings_are_checked(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        PtychoNN(**wrong)
