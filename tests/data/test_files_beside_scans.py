"""Files that a scan is spread over, and those beside it."""

import h5py
import numpy as np
import pytest

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.doors.companions import companion_name, positions_beside, read_table, series_of
from rehearsal_kit.data.scans.doors.scan_file import MOST_OPEN, opened_scan
from rehearsal_kit.data.scans.frames.corrections import Corrections
from rehearsal_kit.data.scans.layouts.numbered import counted_from_first, means_by_number


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "fly007_000012_master.h5"
    with h5py.File(path, "w") as file:
        file["counts"] = np.ones((2, 4, 4))
    return path


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{stem}.csv", "fly007_000012_master.csv"),
        ("{base}.csv", "fly007_000012.csv"),
        ("pos{number}.csv", "pos000012.csv"),
        ("pos{numbers[0]}.csv", "pos007.csv"),
    ],
)
def test_names_of_companions(path, pattern, name):
    assert companion_name(path, pattern) == name


@pytest.mark.parametrize("pattern", ["{numbers[2]}", "{folder}", "{0}", "{stem.wrong}"])
def test_names_that_cannot_be_made_are_refused(path, pattern):
    with pytest.raises(ScanError, match="its name has 2 numbers"):
        companion_name(path, pattern)


def test_the_first_companion_that_is_there(path):
    patterns = ("{numbers[5]}.csv", "{stem}.csv", "{base}.csv")
    with opened_scan(path) as file:
        with pytest.raises(NotYetError, match=r"looked for .*\{base\}\.csv"):
            positions_beside(file, None, patterns)
        (path.parent / "fly007_000012.csv").touch()
        assert positions_beside(file, None, patterns) == "fly007_000012.csv"
        assert positions_beside(file, "told{numbers[0]}.csv", patterns) == "told007.csv"


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("scan 1\nx y\n1 2\n3 4\n", ("x", "y"), [[1, 2], [3, 4]]),
        ("# x, y\n1, 2\n# half way\n3, 4\n", ("x", "y"), [[1, 2], [3, 4]]),
        ("one two three\n1;2;\n", (), [[1, 2]]),
        ("1\t2\n", (), [[1, 2]]),
    ],
)
def test_tables_with_and_without_heading(path, text, names, values):
    path.with_name("table.txt").write_text(text)
    with opened_scan(path) as file:
        table = read_table(file, "table.txt")
    assert table.names == names
    np.testing.assert_array_equal(table.values, values)


@pytest.mark.parametrize("text", ["", "only words", "1 2\n3\n", "1 2\nthree four\n"])
def test_tables_that_are_none_are_refused(path, text):
    path.with_name("table.txt").write_text(text)
    with opened_scan(path) as file, pytest.raises(ScanError, match=r"lines of numbers|hold numbers only"):
        read_table(file, "table.txt")


def test_a_series_is_called_alike_but_for_its_numbers(tmp_path):
    for name in ("a_1_2.h5", "a_1_10.h5", "a_01_1.h5", "b_1_1.h5", "a_1_1.dat", "a_1.h5"):
        (tmp_path / name).touch()
    pattern = r".+_(?P<n1>\d+)_(?P<n2>\d+)\.h5"
    found = series_of(tmp_path / "a_1_2.h5", pattern)
    assert [path.name for path in found.values()] == ["a_01_1.h5", "a_1_2.h5", "a_1_10.h5"]
    assert series_of(tmp_path / "a_1.h5", pattern) == {}
    (tmp_path / "a_1_02.h5").touch()
    with pytest.raises(ScanError, match="have the same numbers"):
        series_of(tmp_path / "a_1_2.h5", pattern)


def test_more_files_than_are_open_at_once_behind_one_virtual_dataset(tmp_path):
    count = MOST_OPEN + 6
    layout = h5py.VirtualLayout((count, 2, 2), np.uint16)
    for number in range(count):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["frames"] = np.full((1, 2, 2), number, np.uint16)
        layout[number] = h5py.VirtualSource(f"{number}.h5", "frames", (1, 2, 2))[0]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("frames", layout)
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file["frames"] = h5py.ExternalLink("all.h5", "frames")
    with opened_scan(tmp_path / "master.h5") as file:
        assert file.dataset("/frames")[-1, 0, 0] == count - 1
        assert file.behind("/frames").path.name == "all.h5"
        assert len(file.others) > MOST_OPEN


def test_only_a_link_to_no_file_dangles(path, tmp_path):
    (tmp_path / "empty.h5").touch()
    with h5py.File(path, "r+") as file:
        file["none"] = h5py.ExternalLink("none.h5", "/x")
        file["empty"] = h5py.ExternalLink("empty.h5", "/x")
    with opened_scan(path) as file:
        assert file.dangles("/none")
        assert not file.dangles("/counts")
        with pytest.raises(NotYetError, match="the file is empty"):
            file.dangles("/empty")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_sixteen_bits_that_were_taken_for_signed_ones(dtype):
    stored = np.array([[[5, -1, -32768]]], dtype)
    np.testing.assert_array_equal(Corrections(negative="wrapped").unwrapped(stored), [[[5, 65535, 32768]]])


def test_means_by_number():
    numbers, means = means_by_number(np.array([4, 2, 4]), np.array([[1.0, 2], [5, 6], [3, 4]]))
    np.testing.assert_array_equal(numbers, [2, 4])
    np.testing.assert_array_equal(means, [[5, 6], [2, 3]])


@pytest.mark.parametrize(
    ("numbers", "frames", "which"),
    [([0, 1, 2], 3, [0, 1, 2]), ([0, 1, 2], 2, [-1, 0, 1]), ([1, 2, 4], 3, [0, 1, 3]), ([0, 1], 5, [0, 1])],
)
def test_triggers_count_from_zero_or_from_one(numbers, frames, which):
    np.testing.assert_array_equal(counted_from_first(np.array(numbers), frames), which)
