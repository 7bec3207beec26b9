"""Which operations of torch make the host wait for a device, and where they were asked for.

On torch's device "meta", which stands for a GPU: what lies there can be read by nobody, so that whatever asks
for numbers is found, whether for a single one, by a copy, or by a result whose size hangs on them.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "bincount", "unique2", "unique_dim"}
)
SIZED_BY_NUMBERS = frozenset({"nonzero", "masked_select", "argwhere"})
BY_INDEX = frozenset({"index", "index_put", "index_put_"})
MADE_OF_NUMBERS = frozenset({torch.tensor, torch.as_tensor})


class WaitedError(BaseException):
    """The host would have waited for the device; no Exception, as those of networks are caught."""


class NoWaiting(TorchDispatchMode):
    """While it is entered: whoever has the host wait for the device is found, also on the way back.

    device: that must not be read; "cpu" tells of single numbers and sizes only: no copy can be seen there.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self._numbers = _NoNumbers(device)

    def __enter__(self) -> Any:
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        name = function._schema.name.partition("::")[2]
        if reason := self._reason(name, arguments, named):
            raise WaitedError(f"{reason} at {place()}")
        return function(*arguments, **named)

    def _reason(self, name: str, arguments: Any, named: Any) -> str:
        there = [each for each in arguments if self._is_there(each)]
        if name in READING | SIZED_BY_NUMBERS and there:
            return f"aten.{name}"
        if name in BY_INDEX and any(self._is_there(i) and i.dtype == torch.bool for i in arguments[1] or ()):
            return f"aten.{name} by a mask"
        if self._device == "cpu":
            return ""
        if name == "_to_copy":
            return self._copied(arguments[0], named.get("device") or arguments[0].device, named)
        if name in ("copy_", "copy"):
            return self._copied(arguments[1], arguments[0].device, {"non_blocking": arguments[2:] == (True,)})
        return ""

    def _copied(self, source: torch.Tensor, to: torch.device, named: Any) -> str:
        if self._is_there(source) and to.type != self._device:
            return "a copy from the device to the host"
        waits = not named.get("non_blocking", False)
        return "a copy to the device that is waited for" if self._comes(source, to) and waits else ""

    def _comes(self, source: torch.Tensor, to: torch.device) -> bool:
        return not self._is_there(source) and to.type == self._device

    def _is_there(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.device.type == self._device


class _NoNumbers(TorchFunctionMode):
    """Finds tensors that are made of numbers of Python on the device: these are copied, and waited for."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        wanted = torch.device(named.get("device") or "cpu").type
        if function in MADE_OF_NUMBERS and wanted == self._device != "cpu":
            raise WaitedError(f"a tensor of numbers of the host at {place()}")
        return function(*arguments, **named)


def place() -> str:
    """The innermost line of the package that is being carried out."""
    lines = [each for each in traceback.extract_stack() if "/rehearsal_kit/" in each.filename]
    if not lines:
        return "no line of the package"
    inner = lines[-1]
    return f"{inner.filename.rpartition('/rehearsal_kit/')[2]}:{inner.lineno} in {inner.name}: {inner.line}"
