"""A trained network with its preparation of the counts, in one file that ONNX runtimes read."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import secrets
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rehearsal_kit.base.errors import ExportError, ScanError, SettingsError
from rehearsal_kit.data.preparation import Preparation

_TOLERANCE = 1e-3
"""Largest difference allowed in an output, as a share of its largest magnitude."""
_PROTOBUF_LIMIT = 2**31
"""Bytes; a single ONNX file holds less."""


class PreparedNetwork(nn.Module):
    """A network behind its preparation, so that it takes the counts as the detector gives them.

    Args:
        network: takes what `Preparation.apply` makes, float32 (sample, 1, row, column), or anything whose
            first axis is the sample if there is no preparation; gives a tensor or a dict of them.
        preparation: with a scale; None: the network is given its input as it is.

    Raises:
        SettingsError: a preparation without a scale.
    """

    def __init__(self, network: nn.Module, preparation: Preparation | None) -> None:
        super().__init__()
        self.network = network
        self.preparation = preparation
        self._scale = 1.0 if preparation is None else _scale_of(preparation)

    def forward(self, counts: Tensor) -> Tensor | dict[str, Tensor]:
        """Counts, float32 (sample, row, column), or the network's own input, to the network's outputs.

        Raises:
            SettingsError: counts that are not float32 or that the preparation cannot bin.
        """
        if self.preparation is not None:
            counts = _transformed(counts, self.preparation) / self._scale
        outputs: Tensor | dict[str, Tensor] = self.network(counts)
        return outputs


def export_onnx(network: PreparedNetwork, path: str | Path, *, example: Tensor) -> Path:
    """Write the network in evaluation mode, weights included, as ONNX; the number of samples stays free.

    The input is "counts", or "input" without a preparation; outputs are named as in the network's dict, a
    bare tensor "output". The file's metadata_props hold "preparation" (JSON, null if there is none),
    "rehearsal_kit_version" and "torch_version". A file that was there before is replaced, but only by one
    that onnxruntime runs, on the CPU, to within 1e-3 of the largest magnitude of every output of torch's,
    on the samples of the example and on 1 and 3 of them.

    Args:
        network: not altered; it may be in training mode and on any device.
        path: of the file.
        example: what the network is to take, (sample, ...), one sample or more of the real thing.

    Returns:
        The absolute path.

    Raises:
        ExportError: a package is missing, torch cannot export the network or onnxruntime not run it, their
            outputs differ, weights of 2 GiB or more, or a place that cannot be written.
        SettingsError: an example without samples, or one that the network refuses.
    """
    onnxruntime = _onnxruntime()
    path = Path(path).expanduser().absolute()
    if not example.ndim or not len(example):
        raise SettingsError(
            f"example has shape {tuple(example.shape)}; give (sample, ...), 1 or more samples."
        )
    weights = sum(part.nbytes for part in (*network.parameters(), *network.buffers()))
    if weights >= _PROTOBUF_LIMIT:
        raise ExportError(f"the weights take {weights} bytes; one ONNX file holds less than 2 GiB.")
    # A copy: the network may be in the midst of its training, on a GPU.
    network = copy.deepcopy(network).cpu().eval()
    example = example.detach().cpu()
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.onnx")
    try:
        with torch.no_grad():
            program = _traced(network, example)
            program.model.metadata_props.update(_metadata(network.preparation))
            program.save(partial, external_data=False)
            _require_equal(_session(onnxruntime, partial), network, example)
        partial.replace(path)
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written: {error}. Choose a folder that exists and that you may write to."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _scale_of(preparation: Preparation) -> float:
    if preparation.scale is None:
        raise SettingsError(
            "preparation has no scale, so it is not fitted yet; train on a first scan, use "
            "preparation.fitted(scan), or set Preparation(scale=...)."
        )
    return preparation.scale


def _transformed(counts: Tensor, preparation: Preparation) -> Tensor:
    """`Preparation.apply`, but for the scale, in operations of torch."""
    try:
        preparation.require_shape(counts.shape[1:], "")
    except ScanError as error:
        raise SettingsError(
            f"counts has shape {tuple(counts.shape)}; give (sample, row, column): {error}"
        ) from error
    if counts.dtype != torch.float32:
        raise SettingsError(f"counts is {counts.dtype}; it must be torch.float32: pass counts.float().")
    size, each = preparation.size, counts.shape[-1] // preparation.size
    binned = counts.reshape(-1, size, each, size, each).sum(dim=(2, 4))[:, None]
    match preparation.counts:
        case "sqrt":
            return binned.sqrt()
        case "log1p":
            return binned.log1p()
    return binned


def _onnxruntime() -> Any:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ExportError(
                f"the package {name} cannot be imported ({error}); pip install 'rehearsal-kit[onnx]'."
            ) from error
    return module


def _traced(network: PreparedNetwork, example: Tensor) -> Any:
    """torch's ONNXProgram.

    With dynamo: torch no longer develops the older exporter, which follows one example through the network
    and writes what Python computed on the way as a constant.
    """
    named = _named(network(example.clone()))  # it may work in place on what it is given
    try:
        with _quiet():
            return torch.onnx.export(
                network,
                # Older versions of torch take an axis of one for a constant.
                (_samples(example, max(2, len(example))),),
                dynamo=True,
                verbose=False,
                input_names=["input" if network.preparation is None else "counts"],
                output_names=list(named),
                dynamic_shapes=({0: torch.export.Dim("sample")},),
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"torch cannot export {type(network.network).__name__}: {_gist(error.__cause__ or error)}. "
            "Outputs and their shapes may depend on the input through operations of torch only."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of torch's exporter on itself and on packages that nothing here uses."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _metadata(preparation: Preparation | None) -> dict[str, str]:
    return {
        "preparation": json.dumps(None if preparation is None else asdict(preparation)),
        "rehearsal_kit_version": version("rehearsal-kit"),
        "torch_version": str(torch.__version__),
    }


def _session(onnxruntime: Any, path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # its own choice is every core of the machine
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no other base
        raise ExportError(f"onnxruntime cannot load what torch exported: {_gist(error)}.") from error


def _require_equal(session: Any, network: PreparedNetwork, example: Tensor) -> None:
    """ExportError unless onnxruntime computes what torch does, for several numbers of samples."""
    (given,) = session.get_inputs()
    for count in sorted({1, 3, len(example)}):
        samples = _samples(example, count)
        expected = _named(network(samples.clone()))
        try:
            computed = session.run(list(expected), {given.name: samples.numpy()})
        except Exception as error:  # its errors have no other base
            raise ExportError(f"onnxruntime fails on {count} samples: {_gist(error)}.") from error
        for (name, output), array in zip(expected.items(), computed, strict=True):
            if array.shape != tuple(output.shape):
                raise ExportError(
                    f"of {count} samples, {name!r} has shape {array.shape} in onnxruntime, but "
                    f"{tuple(output.shape)} in torch."
                )
            difference = (torch.from_numpy(array).double() - output.double()).abs().max().item()
            largest = output.double().abs().max().item()
            if not difference <= _TOLERANCE * largest:  # true of NaN as well
                raise ExportError(
                    f"of {count} samples, {name!r} differs by {difference:.3g} between onnxruntime and "
                    f"torch, where its largest magnitude is {largest:.3g}; a network to export computes the "
                    "same at every call: no random numbers, no state of its own."
                )


def _samples(example: Tensor, count: int) -> Tensor:
    return example[torch.arange(count) % len(example)]


def _named(outputs: object) -> Mapping[str, Tensor]:
    named = {"output": outputs} if isinstance(outputs, Tensor) else outputs
    if not isinstance(named, Mapping) or not all(isinstance(each, Tensor) for each in named.values()):
        raise ExportError(
            f"the network gives {type(outputs).__name__}; it must be a tensor, or a dict of names to tensors."
        )
    return named


def _gist(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
