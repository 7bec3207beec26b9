"""What is seen of a run where there is no terminal, and what an interrupt leaves behind."""

from __future__ import annotations

import io
import sys

from rehearsal_kit.session.progress_bar import PlainLines, new_bar


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
