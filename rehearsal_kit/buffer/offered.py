"""What a step offers to the buffer, until it is stored."""

from __future__ import annotations

from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.row_layout import Accepted, Packed, RowLayout, Samples, Words


class Offered:
    """Some samples of a mini-batch in host memory, lent or copied; never asked by two threads at once."""

    def __init__(self, layout: RowLayout, samples: Samples, chosen: Rows) -> None:
        self._layout = layout
        self._samples = samples
        self._chosen = chosen
        self._rows: Words | None = None

    def accepted(self) -> Accepted | Packed:
        """Them, to be copied into the rows of a store; SettingsError if a value is not finite.

        Where nobody has asked for rows of them they are copied from where they lie, once.
        """
        if self._rows is not None:
            return Packed(self._layout, self._rows)
        return self._layout.accept(self._samples, self._chosen)

    def __call__(self) -> Words:
        """(sample, word): a copy of them, made when it is first asked for; SettingsError as above."""
        if self._rows is None:
            self._rows = self._layout.pack(self._samples, self._chosen)
            self._samples = {}  # whoever lent them may have their memory back
        return self._rows
