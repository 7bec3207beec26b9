"""What is seen of a run where there is no terminal, and what an interrupt leaves behind."""

from __future__ import annotations

import gc
import io
import sys
import threading

import pytest

from rehearsal_kit.session.progress_bar import PlainLines, new_bar


class Interrupting(io.StringIO):
    """Ctrl-C is pressed while something is written."""

    def write(self, text):
        raise KeyboardInterrupt


def test_what_would_be_written_over_the_last_line_is_one_of_its_own():
    stream = io.StringIO()
    lines = PlainLines(stream)
    for text in ("\rER: 0step", "", "\r", "\rER: 5step   ", "\n"):
        lines.write(text)
    assert stream.getvalue() == "ER: 0step\nER: 5step\n"


def test_an_interrupt_at_the_first_line_leaves_nothing_that_another_thread_waits_for(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Interrupting())

    def interrupted():
        with new_bar("ER") as bar:
            bar.refresh()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    collecting = threading.Thread(target=gc.collect, daemon=True)
    collecting.start()
    collecting.join(20)
    assert not collecting.is_alive()
