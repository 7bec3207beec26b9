"""Safetensors files written and read in blocks: other threads go on meanwhile, and memory does not grow.

The format is that of github.com/huggingface/safetensors: the length of a header in JSON, the header, and the
numbers of all tensors one after the other. Nothing in it can be unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.files import written_whole

BLOCK_BYTES = 4 * MIB
"""Copied, hashed and written at once."""
PIECE_BYTES = 2**17
"""Hashed between two system calls: so long may Linux let a thread run on, whatever its priority."""
SYNC_BYTES = 64 * MIB
"""Written before the disk is waited for: so progress is real, and nobody is held up at the end."""
LARGEST_HEADER = 100 * MIB
"""Bound of the format itself."""
ABOUT = "__metadata__"
LENGTH = struct.Struct("<Q")
DTYPES: Mapping[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
"""Dtypes of numpy, by the format's names, that stand in files which are read in blocks."""
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class Sliced(Protocol):
    """Numbers that are asked for from the first to the last, some along the first axis at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all these numbers."""

    def __getitem__(self, block: slice, /) -> NDArray[Any]:
        """Some of them; valid until the next are asked for."""


@dataclass(frozen=True)
class Stored:
    """One tensor on its way into a file."""

    dtype: str
    """Dtype as the format names it."""
    shape: tuple[int, ...]
    numbers: Sliced
    item_bytes: int
    """Bytes of one entry of `numbers` along its first axis."""

    @staticmethod
    def of(numbers: Sliced, dtype: np.dtype[Any]) -> Stored:
        """A tensor made of numbers of a dtype that can be read back in blocks."""
        name = next(name for name, known in DTYPES.items() if known == dtype)
        return Stored(name, numbers.shape, numbers, dtype.itemsize * math.prod(numbers.shape[1:]))

    @staticmethod
    def of_tensor(tensor: torch.Tensor) -> Stored:
        """A tensor of any dtype that the format knows; ValueError for another."""
        if tensor.dtype not in NAMES:
            raise ValueError(f"{tensor.dtype} cannot be written; known are {', '.join(map(str, NAMES))}")
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return Stored(NAMES[tensor.dtype], tuple(tensor.shape), flat, 1)

    @property
    def bytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return self.item_bytes * self.numbers.shape[0]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All numbers, some MiB at a time."""
        count, each = self.numbers.shape[0], per_block(self.item_bytes)
        for begin in range(0, count if self.bytes else 0, each):
            yield np.ascontiguousarray(self.numbers[begin : min(begin + each, count)])


@dataclass(frozen=True)
class Written:
    """A file that is whole on disk."""

    path: Path
    bytes: int
    sha256: str

    def measured(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 by name, for a manifest."""
        return {self.path.name: {"bytes": self.bytes, "sha256": self.sha256}}


def nothing() -> None:
    """Where nobody wants to know how a long piece of work gets on."""


def per_block(item_bytes: int) -> int:
    """How many things of this size are copied at once: one at least."""
    return max(1, BLOCK_BYTES // max(1, item_bytes))


def write_tensors(
    path: Path,
    tensors: Mapping[str, Stored],
    *,
    about: Mapping[str, str] | None = None,
    beat: Callable[[], None] = nothing,
) -> Written:
    """Write a private file that is whole or not there; it is hashed while it is written.

    beat: called after every block; what it raises ends the writing.
    """
    digest, size, unsynced = hashlib.sha256(), 0, 0
    with written_whole(path) as partial, partial.open("wb") as file:
        for block in _all_blocks(tensors, about or {}):
            for begin in range(0, len(block), PIECE_BYTES):
                piece = block[begin : begin + PIECE_BYTES]
                digest.update(piece)
                file.write(piece)
            size, unsynced = size + len(block), unsynced + len(block)
            if unsynced >= SYNC_BYTES:
                file.flush()
                os.fdatasync(file.fileno())
                unsynced = 0
            beat()
    return Written(path, size, digest.hexdigest())


def _all_blocks(tensors: Mapping[str, Stored], about: Mapping[str, str]) -> Iterator[memoryview]:
    ordered = sorted(tensors.items(), key=lambda item: item[1].dtype == "BOOL")  # numbers stay aligned
    header: dict[str, Any] = {ABOUT: dict(about)} if about else {}
    end = 0
    for name, stored in ordered:
        begin, end = end, end + stored.bytes
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH.size)
    yield memoryview(LENGTH.pack(len(text)) + text)
    for _, stored in ordered:
        for block in stored.blocks():
            yield block.data.cast("B")


class TensorFile:
    """One that is read in blocks. OSError, ValueError or KeyError if it is not what it says, or is gone."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = LENGTH.unpack(_exactly(file.read(LENGTH.size), LENGTH.size))
            if length > min(size, LARGEST_HEADER):
                raise ValueError(f"its header would have {length} bytes; it has {size} in all")
            header = json.loads(_exactly(file.read(length), length))
        if not isinstance(header, dict):
            raise ValueError("its header is no dictionary")
        self.about: Mapping[str, str] = header.pop(ABOUT, {})
        self._path = path
        self._first = LENGTH.size + length
        self._places = {name: _place(name, plain, size - self._first) for name, plain in header.items()}

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._places[name].shape

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Some entries of a tensor along its first axis, or all of them: a copy of one's own."""
        place = self._places[name]
        begin, end, _ = slice(begin, end).indices(place.shape[0])
        out = np.empty((max(0, end - begin), *place.shape[1:]), place.dtype)
        if out.size:
            with self._path.open("rb", buffering=0) as file:
                file.seek(self._first + place.begin + begin * (out.nbytes // len(out)))
                wanted = out.data.cast("B")
                while len(wanted):
                    came = file.readinto(wanted)
                    if not came:
                        raise ValueError(f"it ends within {name}")
                    wanted = wanted[came:]
        return out


@dataclass(frozen=True)
class _Place:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int


def _place(name: str, plain: Any, size: int) -> _Place:
    dtype = DTYPES.get(plain["dtype"])
    if dtype is None:
        raise ValueError(f"{name} has dtype {plain['dtype']!r}; known are {', '.join(DTYPES)}")
    shape, (begin, end) = tuple(map(int, plain["shape"])), map(int, plain["data_offsets"])
    lies = shape and min(shape) >= 0 and 0 <= begin <= end <= size
    if not lies or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{name} {shape} lies at {begin} to {end} of {size} bytes: it is truncated or damaged"
        )
    return _Place(dtype, shape, begin)


def _exactly(content: bytes, count: int) -> bytes:
    if len(content) != count:
        raise ValueError(f"it ends after {len(content)} of {count} bytes: it is truncated")
    return content
