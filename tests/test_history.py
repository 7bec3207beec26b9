"""What a kernel is told and what the files say become one timeline, whole and without repeats."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rehearsal_kit.history import History
from rehearsal_kit.run_folder import Ledger, RunFolder
from rehearsal_kit.telemetry import GenerationBegan, Joined, Noted, to_plain

NOTES = [Noted(step=number, text=f"note {number}", time=float(number)) for number in range(6)]


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run").create()


def written(run, records):
    ledger = Ledger(run.timeline, durable=False)
    for record in records:
        ledger.append(to_plain(record))
    ledger.close()


def test_what_is_told_in_order_needs_no_file(run):
    history = History(run)
    for line, record in enumerate(NOTES):
        history.hear(record, line)
    assert history.timeline.records() == NOTES


def test_what_was_missed_is_read_from_the_file(run):
    history = History(run)
    history.hear(NOTES[0], 0)
    written(run, NOTES[:5])
    history.hear(NOTES[4], 4)  # 1 to 3 were not told
    history.hear(NOTES[2], 2)  # told late: known already
    history.hear(NOTES[5], 5)  # told before the file has it
    assert history.timeline.records() == NOTES
    written(run, NOTES[5:])
    history.catch_up()
    assert history.timeline.records() == NOTES


def test_a_file_that_lags_is_waited_for(run):
    history = History(run)
    history.hear(NOTES[2], 2)
    assert len(history.timeline) == 0  # nobody knows what comes before it
    written(run, NOTES[:2])
    history.catch_up()
    assert history.timeline.records() == NOTES[:3]


def test_a_torn_last_line_is_left_until_it_is_whole(run):
    written(run, NOTES[:2])
    line = json.dumps(to_plain(NOTES[2])) + "\n"
    with run.timeline.open("a") as stream:
        stream.write(line[:20])
    history = History(run)
    history.catch_up()
    assert history.timeline.records() == NOTES[:2]
    with run.timeline.open("a") as stream:
        stream.write(line[20:])
    history.catch_up()
    assert history.timeline.records() == NOTES[:3]


def test_ranks_and_the_coordinator_are_told_apart(run):
    history = History(run)
    began = GenerationBegan(generation=1, workers=("a", "b"), time=0.0)
    history.hear(began, 0, of_generations=True)
    history.hear(NOTES[0], 0)
    joined = Joined(rank=1, ranks=2, device="cpu", process=7, time=0.0)
    history.hear(joined, None)  # stands in no file
    assert history.timeline.records() == [began, NOTES[0], joined]


def test_a_ledger_cuts_off_a_torn_line_before_it_goes_on(run):
    written(run, NOTES[:2])
    with run.timeline.open("a") as stream:
        stream.write('{"torn')
    ledger = Ledger(run.timeline, durable=False)
    assert ledger.append(to_plain(replace(NOTES[2], text="after"))) == 2
    ledger.close()
    history = History(run)
    history.catch_up()
    assert [record.text for record in history.timeline.records()] == ["note 0", "note 1", "after"]
