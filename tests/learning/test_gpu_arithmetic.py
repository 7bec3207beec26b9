"""How a process is told to compute on a GPU, and that nothing of it stays; that needs no GPU."""

from __future__ import annotations

import os

import pytest
import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.learning.forward_pass import ForwardPass
from rehearsal_kit.learning.gpu_arithmetic import VARIABLES, device_versions, gpu_arithmetic
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.strategies.references import Incremental


def as_it_is():
    cudnn = torch.backends.cudnn
    return {
        "enabled": cudnn.enabled,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "convolutions in TF32": cudnn.allow_tf32,
        "products": torch.get_float32_matmul_precision(),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "only warned": torch.is_deterministic_algorithms_warn_only_enabled(),
        "memory filled": torch.utils.deterministic.fill_uninitialized_memory,
    }


@pytest.fixture
def variables(monkeypatch):
    """As a site may have set them; as they were after the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "of the site")


@pytest.fixture
def others():
    """Flags as a run before, or code of somebody else, may have left them."""
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before[0]
    torch.set_float32_matmul_precision(before[1])


FULL = {"enabled": True, "convolutions in TF32": False, "products": "highest"}
SAME = {**FULL, "benchmark": False, "deterministic": True, "algorithms": True, "memory filled": False}


@pytest.mark.usefixtures("variables", "others")
@pytest.mark.parametrize(("deterministic", "wanted"), [(True, {**SAME, "only warned": False}), (False, FULL)])
def test_a_gpu_computes_as_asked_while_a_run_goes_on_and_as_before_after_it(deterministic, wanted):
    before = as_it_is()
    assert not before.items() >= FULL.items()
    with gpu_arithmetic("cuda:0", deterministic=deterministic):
        now = as_it_is()
        assert {name: os.environ[name] for name in VARIABLES} == VARIABLES
    assert now == {**before, **wanted}
    assert as_it_is() == before
    with pytest.raises(RuntimeError, match="of a rank"), gpu_arithmetic("cuda:0", deterministic=True):
        raise RuntimeError("of a rank")
    assert as_it_is() == before


def test_nothing_is_changed_for_a_cpu(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = as_it_is()
    with gpu_arithmetic("cpu", deterministic=True):
        assert as_it_is() == before
        assert device_versions("cpu") == {"device": "cpu"}
    assert not VARIABLES.keys() & os.environ.keys()


@pytest.mark.usefixtures("variables")
def test_a_process_that_has_used_its_gpu_with_other_variables_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with (
        pytest.raises(
            SettingsError, match=r"CUBLAS_WORKSPACE_CONFIG=of the site.*Training\(deterministic=False\)"
        ),
        gpu_arithmetic("cuda:0", deterministic=True),
    ):
        pass
    with gpu_arithmetic("cuda:0", deterministic=False):
        assert os.environ["NCCL_NVLS_ENABLE"] == "of the site"


class Putting(torch.nn.Module):
    """An operation of which torch has no deterministic version, on no device."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layer(x)
        return logits.put(torch.tensor([0]), torch.zeros(1))


def test_an_operation_that_cannot_repeat_its_bits_is_said_with_what_may_be_done():
    samples = {"x": torch.rand(4, 3), "y": torch.rand(4, 2)}
    learner = Learner(Putting(), Training(), device="cpu", groups=ProcessGroups(0, 1))
    learner.know(learner.meet(samples, "x"))
    with gpu_arithmetic("cpu", deterministic=True):
        assert not learner.step(MiniBatch(samples, {}, {}), strategy=Incremental()).error
    torch.use_deterministic_algorithms(True)
    try:
        error = learner.step(MiniBatch(samples, {}, {}), strategy=Incremental()).error
    finally:
        torch.use_deterministic_algorithms(False)
    assert "put_ does not have a deterministic implementation" in error
    assert "or give Training(deterministic=False)" in error


@pytest.mark.parametrize(
    ("natively", "precision", "bfloat16"),
    [(True, "auto", True), (False, "auto", False), (True, "float32", False), (False, "bfloat16", True)],
)
def test_precision_of_its_own_choice_is_bfloat16_only_where_a_gpu_computes_with_it(
    monkeypatch, natively, precision, bfloat16
):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: natively or including_emulation
    )
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: asked.append((kind, dtype, enabled)))
    ForwardPass(torch.nn.Linear(1, 1), device="cuda:0", precision=precision)._autocast()
    assert asked == [("cuda", torch.bfloat16, bfloat16)]
