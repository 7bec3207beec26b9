"""What is seen of a run where there is no terminal, and what an interrupt leaves behind."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from tqdm import tqdm

from rehearsal_kit.record.rank_records import GenerationBegan
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.tail import TimelineTail
from rehearsal_kit.session.progress_bar import PlainLines, Progress, new_bar


def test_what_would_be_written_over_the_last_line_is_one_of_its_own():
    stream = io.StringIO()
    lines = PlainLines(stream)
    for text in ("\rER: 0step", "", "\r", "\rER: 5step   ", "\n"):
        lines.write(text)
    assert stream.getvalue() == "ER: 0step\nER: 5step\n"


def test_a_bar_shows_nothing_while_it_is_made(monkeypatch):
    """Ctrl-C then would leave tqdm's lock taken, and a half-made bar that waits for it when it goes."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with new_bar("ER") as bar:
        assert stream.getvalue() == ""
        bar.refresh()
        assert stream.getvalue().startswith("ER: 0step")


def test_what_a_run_goes_on_with_is_said_where_there_is_no_panel(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    with new_bar("ER") as bar:
        progress = Progress(bar, [1])
        for generation, workers in enumerate([("a", "b"), ("a",), ("a", "b")]):
            progress.take([GenerationBegan(generation=generation, workers=workers, time=0.0, of=2)])
    assert (
        stream.getvalue().count("goes on with") == stream.getvalue().count("goes on with 1 of 2 workers") == 1
    )


class Interrupted(io.StringIO):
    """Whoever writes to it is interrupted, once it is to be so."""

    armed = False

    def write(self, text):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt
        return super().write(text)


@pytest.mark.parametrize("drawn", ["refresh", "update", "set_description"])
def test_ctrl_c_while_a_bar_is_drawn_keeps_nobody_from_drawing_the_next(monkeypatch, drawn):
    """Once the thread that hears of a run waited for tqdm's lock, and the command did not end."""
    stream = Interrupted()
    monkeypatch.setattr(sys, "stderr", stream)
    with new_bar("ER") as bar:
        bar.mininterval, bar.start_t = 0, bar.start_t - 60
        stream.armed = True
        with pytest.raises(KeyboardInterrupt):
            getattr(bar, drawn)()
    others = threading.Thread(target=lambda: tqdm(file=io.StringIO()).close(), daemon=True)
    others.start()
    others.join(10)
    assert not others.is_alive()


def test_what_a_run_has_told_is_read_without_the_lock_of_bars(tmp_path):
    tail = TimelineTail(RunFolder(tmp_path / "run").create())
    reading = threading.Thread(target=tail.catch_up, daemon=True)
    with tqdm.get_lock():
        reading.start()
        reading.join(10)
        assert not reading.is_alive()
