"""What is exported is what was trained, down to the counts, or nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn

from rehearsal_kit.base.errors import ExportError, SettingsError
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.onnx_export import PreparedNetwork, export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Classifier(nn.Module):
    """Batch normalisation, dropout and adaptive pooling: images of any sides to 5 classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, images):
        return {"label": self.head(self.features(images))}


def counts_of(samples, side=32):
    return np.random.default_rng(0).poisson(40, (samples, side, side)).astype(np.float32)


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def assert_close(computed, expected):
    expected = expected.detach().numpy()
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("counts", ["raw", "sqrt", "log1p"])
def test_counts_are_prepared_as_in_training_and_as_the_file_says(tmp_path, counts):
    preparation = Preparation(size=16, counts=counts, scale=37.5)
    network = PtychoNN().eval()
    example = torch.from_numpy(counts_of(1))
    path = export_onnx(PreparedNetwork(network, preparation), tmp_path / "net.onnx", example=example)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    for samples in (1, 2, 5):
        frames = counts_of(samples)
        expected = network(preparation.apply(frames))
        computed = run(path, counts=frames)
        assert list(computed) == ["amplitude", "phase"]
        for name, output in expected.items():
            assert_close(computed[name], output)
    held = metadata(path)
    assert Preparation(**json.loads(held["preparation"])) == preparation
    assert held["torch_version"] == torch.__version__
    assert held["rehearsal_kit_version"] == version("rehearsal-kit")


def test_in_torch_the_counts_are_prepared_too():
    preparation = Preparation(size=16, counts="log1p", scale=3.0)
    frames = counts_of(2)
    assert_close(
        PreparedNetwork(nn.Identity(), preparation)(torch.from_numpy(frames)), preparation.apply(frames)
    )


def test_a_network_in_training_is_exported_for_evaluation_and_left_alone(tmp_path):
    network = PreparedNetwork(Classifier(), None).train()
    network.network.features.eval()
    images = torch.rand(4, 3, 12, 12)
    before = {name: part.clone() for name, part in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    path = export_onnx(network, tmp_path / "a.onnx", example=images)
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(part, before[name]) for name, part in network.state_dict().items())
    assert_close(run(path, input=images.numpy())["label"], network.eval()(images)["label"])


def test_a_bare_tensor_is_the_output(tmp_path):
    network = PreparedNetwork(nn.Linear(4, 2), None)
    path = export_onnx(network, tmp_path / "a.onnx", example=torch.rand(1, 4))
    given = torch.rand(7, 4)
    assert_close(run(path, input=given.numpy())["output"], network(given))
    assert json.loads(metadata(path)["preparation"]) is None


class Random(nn.Module):
    """The well-known slip: without training=self.training this drops out in evaluation as well."""

    def forward(self, given):
        return {"fine": given, "dropped": nn.functional.dropout(given)}


class Branching(nn.Module):
    def forward(self, given):
        return given if float(given.sum()) > 0 else -given


class Pair(nn.Module):
    def forward(self, given):
        return given, given


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Random(), "of 1 samples, 'dropped' differs by .* largest magnitude is"),
        (Branching(), "torch cannot export Branching: .*data-dependent"),
        (Pair(), "gives tuple; it must be a tensor"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_that_onnxruntime_does_not_compute_the_same_leaves_no_file(tmp_path, network, message):
    path = tmp_path / "a.onnx"
    path.write_text("the export before")
    with pytest.raises(ExportError, match=message):
        export_onnx(PreparedNetwork(network, None), path, example=torch.rand(8, 16) + 1)
    assert path.read_text() == "the export before"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_are_not_numbers_are_not_taken_for_equal(tmp_path):
    with pytest.raises(ExportError, match="differs by nan"):
        export_onnx(
            PreparedNetwork(nn.ReLU(), None), tmp_path / "a.onnx", example=torch.full((1, 4), torch.nan)
        )


def test_what_one_file_cannot_hold_or_reach_is_refused(tmp_path):
    network = PreparedNetwork(nn.Linear(2, 2), None)
    with pytest.raises(ExportError, match=r"nowhere.*folder that exists"):
        export_onnx(network, tmp_path / "nowhere" / "a.onnx", example=torch.rand(1, 2))
    network.register_buffer("large", torch.empty(2**29, device="meta"))
    with pytest.raises(ExportError, match=r"2147483672 bytes.*less than 2 GiB"):
        export_onnx(network, tmp_path / "a.onnx", example=torch.rand(1, 2))


def test_a_preparation_that_is_not_fitted_is_refused():
    with pytest.raises(SettingsError, match=r"not fitted yet; train on a first scan.*scale="):
        PreparedNetwork(PtychoNN(), Preparation())


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.ones(1, 6, 6), "frames are 6 x 6 pixels.*multiple of size 4"),
        (torch.ones(1, 1, 8, 8), r"shape \(1, 1, 8, 8\); give \(sample, row, column\)"),
        (torch.ones(1, 8, 8, dtype=torch.int32), r"int32.*counts\.float"),
        (torch.ones(0, 8, 8), "1 or more samples"),
    ],
)
def test_an_example_that_is_no_counts_is_refused(tmp_path, example, message):
    network = PreparedNetwork(nn.Flatten(), Preparation(size=4, scale=1.0))
    with pytest.raises(SettingsError, match=message):
        export_onnx(network, tmp_path / "a.onnx", example=example)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    network = PreparedNetwork(nn.Linear(2, 2), None)
    with pytest.raises(ExportError, match=rf"package {missing} cannot .*pip install 'rehearsal-kit\[onnx\]'"):
        export_onnx(network, tmp_path / "a.onnx", example=torch.rand(1, 2))


def test_an_export_says_nothing_and_others_may_read_it(tmp_path):
    path = tmp_path / "a.onnx"
    code = (
        "import os, sys, torch; os.umask(0o022);"
        "from rehearsal_kit.learning.onnx_export import PreparedNetwork, export_onnx;"
        "network = PreparedNetwork(torch.nn.Linear(2, 2), None);"
        "export_onnx(network, sys.argv[1], example=torch.rand(1, 2))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert path.stat().st_mode & 0o777 == 0o644
