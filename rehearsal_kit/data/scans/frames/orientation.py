"""How frames lie in a file against the axes of the positions: one of eight ways, by PtyPy's codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SettingsError

CODES = range(8)
_TRANSPOSED, _ROWS_FLIPPED, _COLUMNS_FLIPPED = 4, 2, 1


def require_code(label: str, code: object) -> int:
    """An orientation: 4 for frames that are transposed first, 2 for flipped rows, 1 for flipped columns.

    These are the codes of PtyPy's `orientation`. Raises a SettingsError for anything but 0 to 7.
    """
    if isinstance(code, bool) or not isinstance(code, int) or code not in CODES:
        raise SettingsError(
            f"{label} is {code!r}; it must be a number from 0 to 7: 4 if frames have to be transposed, plus "
            "2 if their rows have to be flipped, plus 1 if their columns have to be."
        )
    return code


def oriented(frames: NDArray[Any], code: int) -> NDArray[Any]:
    """Frames (..., row, column) turned by a code: transposed, then rows flipped, then columns; a view."""
    if code & _TRANSPOSED:
        frames = frames.swapaxes(-1, -2)
    if code & _ROWS_FLIPPED:
        frames = frames[..., ::-1, :]
    if code & _COLUMNS_FLIPPED:
        frames = frames[..., ::-1]
    return frames


def in_words(code: int) -> str:
    """What a code does, as people say it."""
    words = [
        word
        for bit, word in (
            (_TRANSPOSED, "transposed"),
            (_ROWS_FLIPPED, "rows flipped"),
            (_COLUMNS_FLIPPED, "columns flipped"),
        )
        if code & bit
    ]
    return ", ".join(words) or "as stored"


def oriented_shape(shape: tuple[int, int], code: int) -> tuple[int, int]:
    """Rows and columns of frames of a shape after they were turned."""
    return (shape[1], shape[0]) if code & _TRANSPOSED else shape


def undone(code: int) -> int:
    """The code that turns frames back which a code has turned."""
    if not code & _TRANSPOSED:
        return code
    # Flips act after the transposition: to go back, rows and columns change places.
    rows, columns = bool(code & _ROWS_FLIPPED), bool(code & _COLUMNS_FLIPPED)
    return _TRANSPOSED | (_ROWS_FLIPPED if columns else 0) | (_COLUMNS_FLIPPED if rows else 0)


def followed_by(first: int, second: int) -> int:
    """The one code that does what two do one after the other."""
    probe = np.arange(6).reshape(2, 3)
    wanted = oriented(oriented(probe, first), second)
    return next(code for code in CODES if np.array_equal(oriented(probe, code), wanted))
