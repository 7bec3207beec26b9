"""Values as JSON keeps them: Python's own numbers, truth values and texts in the place of numpy's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np


def plain_value(value: Any) -> Any:
    """A number, a truth value or a text of numpy as Python's own, also within a tuple; all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple) and any(isinstance(part, np.generic) for part in value):
        return tuple(plain_value(part) for part in value)
    return value


def make_plain(record: Any) -> None:
    """Give a frozen dataclass Python's own values, before they are checked; from its `__post_init__`.

    What numpy computed, such as `np.int64(8)`, is as good a setting, but JSON does not take it.
    """
    for field in fields(record):
        value = getattr(record, field.name)
        if (plain := plain_value(value)) is not value:
            object.__setattr__(record, field.name, plain)


def with_tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as they were before JSON made lists of their tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
