"""What a person asked for in one panel, and what the ranks said to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.record.answers import answers
from rehearsal_kit.record.records import Applied
from rehearsal_kit.session.session import Session

ERROR_LENGTH = 700
SHOWN = 3
"""Wishes whose answers stay on the page; one without an answer stays longer."""
REMEMBERED = 12


class Requests:
    """Asks the session and keeps the number that it gets; a callback of any thread may call."""

    def __init__(self, session: Session, *, asked: Callable[[], None]) -> None:
        """asked: called after every gesture, so that the answer is on the page at once."""
        self._session = session
        self._tell = asked
        self._asked: tuple[tuple[int, str], ...] = ()
        """Numbers and words, the newest last; replaced as a whole, so that any thread may read."""
        self.trouble = ""
        """Why the last gesture came to nothing."""

    @property
    def newest(self) -> int:
        """Number of the newest wish; 0 if there was none."""
        return self._asked[-1][0] if self._asked else 0

    def ask(self, words: str, call: Callable[[], object]) -> None:
        """Call the session; `words` say what for."""
        self.trouble = ""
        try:
            number = call()
        except RehearsalKitError as error:
            self.trouble = f"{words}: {error}"
        else:
            if isinstance(number, int):  # all but the start, which no rank answers
                self._asked = (*self._asked, (number, words))[-REMEMBERED:]
        self._tell()

    def answers(self, applied: Sequence[Applied]) -> list[str]:
        """A line of HTML per wish, the newest first."""
        ranks, asked = self._session.ranks, self._asked
        holders = self._session.holders
        answered = {record.number for record in applied if record.holder in holders}
        return [
            f"asked (no. {number}): <b>{escape(words)}</b> &rarr; "
            f"{answer(answers(applied, number, holders), ranks)}"
            for place, (number, words) in reversed([*enumerate(asked, SHOWN - len(asked))])
            if place >= 0 or number not in answered
        ]


def answer(said: Sequence[Applied], ranks: int) -> str:
    """What the ranks said to a wish, as HTML. ranks: how many they are, where they do not say it."""
    if not said:
        return "not yet in force"
    refusals = [record.refused for record in said if record.refused]
    if refusals:
        return refused(f"refused by all ranks: {refusals[0]}")
    first = said[0]
    ranks = first.ranks or ranks
    steps = " / ".join(str(step) for step in sorted({record.step for record in said}))
    where = f"step {steps}" + (f" of branch {first.branch}" if first.branch else "")
    who = f"all {ranks} ranks" if len(said) == ranks else f"{len(said)} of {ranks} ranks"
    return f"{'in force from' if first.kind == 'Steer' else 'done at'} {where} on {who}"


def refused(words: str) -> str:
    """Words that stand out, as HTML."""
    return f'<span class="rk-refused">{escape(words[:ERROR_LENGTH])}</span>'


def spelt(values: Mapping[str, float | str]) -> str:
    """Settings as text for people; not escaped."""
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    )
