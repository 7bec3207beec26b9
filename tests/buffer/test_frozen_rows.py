"""Rows of a store are read as they were at one moment, while the store goes on."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from rehearsal_kit.base.errors import SnapshotError
from rehearsal_kit.buffer.frozen_rows import FrozenRows


def rows_of(count):
    return np.arange(count, dtype=np.int64)[:, None] * np.ones((1, 3), np.int64)


def test_a_store_that_changes_faster_than_it_is_read_waits_for_the_reader_and_for_no_more_memory():
    rows = rows_of(100)
    before, frozen = rows.copy(), FrozenRows(rows, spare=10)

    def change():
        every = np.arange(100)
        frozen.keep(every)
        rows[every] = -1

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    read, most = [], 0
    for begin in range(0, 100, 5):
        read.append(frozen[begin : begin + 5])
        most = max(most, frozen.nbytes // rows[0].nbytes)
    thread.join(60)
    assert not thread.is_alive()
    assert np.array_equal(np.concatenate(read), before)
    assert (rows == -1).all()
    assert most <= 10
    assert frozen.nbytes == 0


def test_a_reader_that_is_stuck_loses_its_rows_and_the_store_goes_on(monkeypatch):
    monkeypatch.setattr("rehearsal_kit.buffer.frozen_rows.STUCK_S", 0.05)
    frozen = FrozenRows(rows_of(100), spare=10)
    frozen[0:5]
    frozen.keep(np.arange(100))
    assert frozen.over
    with pytest.raises(SnapshotError, match="5 of 100 rows were written, then none in 0 s"):
        frozen[5:10]


def test_nobody_waits_for_a_reader_that_has_let_go():
    frozen = FrozenRows(rows_of(100), spare=1)
    frozen.close()
    frozen.keep(np.arange(100))
    with pytest.raises(SnapshotError, match="let go of"):
        frozen[0:5]
