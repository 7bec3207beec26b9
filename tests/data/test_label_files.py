"""Labels written to files and read again, and files that are none."""

from __future__ import annotations

from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.labels.label import Label, LabelSource
from rehearsal_kit.data.labels.label_files import read_label, write_label

ARRAYS = ("object", "probe", "coverage", "positions_px")


def label(**others):
    random = np.random.default_rng(3)

    def wave(*shape):
        return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)

    fields = {
        "object": wave(12, 10),
        "origin_px": (-2.25, 3.0),
        "pixel_m": 1.5e-8,
        "probe": wave(2, 4, 4),
        "coverage": random.random((12, 10)).astype(np.float32),
        "positions_px": random.uniform(3, 7, (5, 2)),
        "errors": (0.5, 0.25),
        "source": LabelSource(
            library="cdtools-py",
            version="0.3.2",
            settings={"epochs": 2, "good_enough": None, "correct_positions": False, "spread": 0.25},
            scan="scan_0001.cxi",
            digest="ab" * 32,
        ),
    }
    return Label(**{**fields, **others})


@pytest.mark.parametrize("pixel_m", [1.5e-8, None])
def test_a_label_comes_back_as_it_was(tmp_path, pixel_m):
    written = label(pixel_m=pixel_m)
    path = write_label(written, tmp_path / "label.h5")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["label.h5"]
    read = read_label(path)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    for name in ("origin_px", "pixel_m", "errors"):
        assert getattr(read, name) == getattr(written, name)
    assert asdict(read.source) == asdict(written.source)
    with h5py.File(path) as file:
        assert file.attrs["library"] == "cdtools-py", "plain attributes, for people to look at"


def test_a_new_label_takes_the_place_of_an_old_one_whole(tmp_path):
    path = write_label(label(), tmp_path / "label.h5")
    write_label(label(errors=(0.125,)), path)
    assert read_label(path).errors == (0.125,)


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def dataset(name, value):
    def damage(file):
        del file[name]
        file[name] = value

    return damage


def a_hole(file):
    file["object"][2, 2] = np.nan


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.attrs.__delitem__("rehearsal_kit_label"), "is no label"),
        (attribute("rehearsal_kit_label", 7), "of version 7"),
        (attribute("settings", "{"), "no JSON"),
        (attribute("settings", "[1]"), "must have names"),
        (attribute("settings", "[" * 50_000), "no JSON"),
        (lambda file: file.attrs.__delitem__("digest"), "lacks the attribute digest"),
        (attribute("origin_px", np.zeros(3)), "must be two numbers"),
        (attribute("pixel_m", -1.0), "one number above 0"),
        (lambda file: file.__delitem__("coverage"), "no dataset coverage"),
        (dataset("coverage", np.ones((3, 3), np.float32)), "float32 as the object"),
        (dataset("object", np.ones((12, 10), np.float32)), "must hold numbers"),
        (dataset("object", h5py.ExternalLink("other.h5", "/object")), "link into another file"),
        (a_hole, "NaN or infinite"),
    ],
)
def test_a_file_that_is_no_sound_label_is_refused(tmp_path, damage, said):
    path = write_label(label(), tmp_path / "label.h5")
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(ScanError, match=said):
        read_label(path)


def test_what_is_not_there_may_come(tmp_path):
    with pytest.raises(NotYetError):
        read_label(tmp_path / "label.h5")
    with pytest.raises(ScanError, match="cannot be written"):
        write_label(label(), tmp_path / "nowhere" / "label.h5")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"probe": np.ones((4, 4), np.complex64)}, "complex64"),
        ({"coverage": np.ones((12, 10))}, "float64"),
        ({"errors": (float("inf"),)}, "infinite"),
        ({"positions_px": np.array([[1.0, 5.0]])}, "leave the object"),
        ({"positions_px": np.array([[5.0, 9.0]])}, "leave the object"),
    ],
)
def test_a_label_whose_parts_do_not_fit_is_refused(wrong, said):
    with pytest.raises(ScanError, match=said):
        label(**wrong)


def test_where_the_object_is_known():
    coverage = np.zeros((12, 10), np.float32)
    coverage[2:5] = 0.5
    coverage[7] = 0.01
    assert replace(label(), coverage=coverage).covered.sum() == 30
