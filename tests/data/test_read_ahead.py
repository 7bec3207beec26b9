import threading

import pytest

from rehearsal_kit.data.scans.doors.read_ahead import read_ahead


def test_the_next_one_is_read_while_the_last_one_is_worked_on():
    began = [threading.Event() for _ in range(3)]

    def read(number):
        began[number].set()
        return number

    reads = read_ahead([lambda number=number: read(number) for number in range(3)])
    assert next(reads) == 0
    assert began[1].wait(10)
    assert not began[2].is_set()
    assert list(reads) == [1, 2]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_all_come_in_their_order_and_no_thread_stays(count):
    assert list(read_ahead([lambda number=number: number for number in range(count)])) == list(range(count))
    assert not [each for each in threading.enumerate() if each.name.startswith("reading ahead")]


def test_an_error_comes_in_its_turn_and_nothing_is_read_after_it():
    read = []

    def fail():
        raise OSError("damaged")

    reads = read_ahead([lambda: read.append(0), fail, lambda: read.append(2), lambda: read.append(3)])
    assert next(reads) is None
    with pytest.raises(OSError, match="damaged"):
        next(reads)
    assert read == [0]
