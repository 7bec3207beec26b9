"""What a kernel is told and what the files say become one timeline, whole and without repeats."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from runkit import written

from rehearsal_kit.record.ledger import Ledger
from rehearsal_kit.record.rank_records import GenerationBegan, Joined
from rehearsal_kit.record.record_lines import BLOCK, lines_backwards
from rehearsal_kit.record.records import Noted, StateChanged, to_plain
from rehearsal_kit.record.tail import EARLY, TimelineTail
from rehearsal_kit.record.timeline import Timeline

NOTES = [Noted(step=number, text=f"note {number}", time=float(number)) for number in range(6)]


def test_what_is_told_in_order_needs_no_file(run):
    history = TimelineTail(run)
    for line, record in enumerate(NOTES):
        history.hear(record, line)
    assert history.timeline.records() == NOTES


def test_what_was_missed_is_read_from_the_file(run):
    history = TimelineTail(run)
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
    history = TimelineTail(run)
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
    history = TimelineTail(run)
    history.catch_up()
    assert history.timeline.records() == NOTES[:2]
    with run.timeline.open("a") as stream:
        stream.write(line[20:])
    history.catch_up()
    assert history.timeline.records() == NOTES[:3]


def test_ranks_and_the_coordinator_are_told_apart(run):
    history = TimelineTail(run)
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
    history = TimelineTail(run)
    history.catch_up()
    assert [record.text for record in history.timeline.records()] == ["note 0", "note 1", "after"]


DAMAGED = (
    b"\0" * 300,
    b'{"record": "Noted", "step": 3, "te',
    b"\xff\xfe",
    b"5",
    b'{"record": "Unheard", "step": 3}',
    b'{"record": "Noted", "step": 3}',
    b'{"record": "Noted", "step": "three", "text": "", "time": 0.0, "branch": 0}',
    b'{"record": "Steps", "first": 0, "task": 0, "losses": [null]}',
    b"[" * 100_000,
    b"\r",
)


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_said_once_and_the_others_are_there(run, line, caplog):
    written(run, NOTES[:2])
    with run.timeline.open("ab") as stream:
        stream.write(line + b"\n" + line + b"\n")
    written(run, NOTES[2:4])
    history = TimelineTail(run)
    history.catch_up()
    history.hear(NOTES[4], 6)  # the next one: damaged lines count
    assert history.timeline.records() == NOTES[:5]
    assert [record.message for record in caplog.records] == [record.message for record in caplog.records[:1]]
    assert f"line 3 of {run.timeline} is damaged" in caplog.text
    assert Timeline.load(run.timeline).records() == NOTES[:4]


def test_a_damaged_line_of_the_coordinator_is_left_out_as_well(run, caplog):
    run.generations.write_text('{"record": "Gener\n')
    written(run, NOTES)
    history = TimelineTail(run)
    history.catch_up()
    assert history.timeline.records() == NOTES
    assert "generations.jsonl is damaged" in caplog.text


def test_what_is_told_beyond_what_is_held_is_read_from_the_file(run):
    history = TimelineTail(run)
    told = [StateChanged(step=step, state="running") for step in range(EARLY + 50)]
    for line, record in enumerate(told[1:], 1):  # the first one was missed, and the file lags
        history.hear(record, line)
    assert len(history.timeline) == 0
    written(run, told)
    history.catch_up()
    assert len(history.timeline) == len(told)
    assert history.timeline.last(StateChanged) == told[-1]


@pytest.mark.parametrize("end", [b"", b"\n", b"\ntorn", b"torn"])
def test_lines_are_the_same_from_either_end(tmp_path, end):
    lengths = random.Random(1)
    lines = [bytes([65 + n % 26]) * lengths.choice([0, 3, 1000, BLOCK // 2, BLOCK]) for n in range(40)]
    path = tmp_path / "lines"
    path.write_bytes(b"\n".join(lines) + end)
    whole = (b"\n".join(lines) + end).split(b"\n")[:-1]
    assert [*lines_backwards(path)] == whole[::-1]
    assert [*lines_backwards(tmp_path / "none")] == []
