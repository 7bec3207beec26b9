"""Text that came from files, made fit for people: what they see, and all that carries it, can take it."""

from __future__ import annotations

from typing import Any


def printable(value: Any) -> Any:
    """The same text with what cannot be printed written as Python writes it; line breaks and tabs stay.

    A file name may be any bytes: Dask's messages and terminals take no surrogates, and obey control
    characters. Other values come back as they are, tuples of texts text by text.
    """
    if isinstance(value, tuple):
        return tuple(map(printable, value))
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in value)
