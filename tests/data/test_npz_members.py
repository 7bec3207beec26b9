"""Arrays of archives are read like those of HDF5: whole, by rows, forwards and backwards."""

from __future__ import annotations

import numpy as np
import pytest

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.doors.scan_file import opened_scan

KEYS = (
    (),
    slice(None),
    slice(3, 7),
    slice(0, 0),
    slice(2, 99),
    slice(7, 1),
    slice(None, None, 2),
    4,
    np.int64(6),
    -1,
    (slice(2, 5), slice(1, 3)),
    (3, slice(0, 2)),
    (slice(None), 1, slice(None)),
    (slice(8, 10), slice(None), 2),
)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_whatever_is_asked_for_comes_as_from_the_array(tmp_path, order, save):
    array = np.asarray(np.random.default_rng(0).integers(0, 99, (10, 4, 3)), np.dtype(">i4"), order=order)
    save(tmp_path / "a.npz", x=array, scalar=np.float64(3.5))
    with opened_scan(tmp_path / "a.npz") as file:
        found = file.dataset("/x")
        assert (found.shape, found.dtype, found.ndim, found.size, len(found)) == (
            (10, 4, 3),
            ">i4",
            3,
            120,
            10,
        )
        for key in (*KEYS, *reversed(KEYS)):
            np.testing.assert_array_equal(found[key], array[key])
        assert file.number("scalar") == 3.5
        assert file.find("y") is None
        with pytest.raises(ScanError, match="there is no array y; it has x, scalar"):
            file.dataset("y")


def test_rows_are_read_without_reading_the_archive_again(tmp_path):
    array = np.arange(4000).reshape(1000, 4)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    with opened_scan(tmp_path / "a.npz") as file:
        found, opened = file.dataset("x"), []
        archive = found.archive
        real = archive.open
        archive.open = lambda name: opened.append(name) or real(name)
        rows = [found[number : number + 10] for number in range(0, 1000, 10)]
        np.testing.assert_array_equal(np.concatenate(rows), array)
        assert len(opened) == 1


def test_what_is_cut_off_or_damaged_or_pickled_is_said(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).random(5000), y=np.array([{}, None]))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[:20_000])
    with (
        pytest.raises(NotYetError, match=r"short\.npz: is no whole \.npz archive"),
        opened_scan(tmp_path / "short.npz"),
    ):
        pass
    (tmp_path / "bad.npz").write_bytes(whole[:20_000] + bytes(100) + whole[20_100:])
    with opened_scan(tmp_path / "bad.npz") as file, pytest.raises(ScanError, match="damaged"):
        file.values("x", kinds="f")
    with opened_scan(tmp_path / "a.npz") as file:
        assert file.find("y") is None  # nothing is ever unpickled
