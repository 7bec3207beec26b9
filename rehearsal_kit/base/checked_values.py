"""Immutable records made of plain values from a file or a network: each of the type that it says."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from rehearsal_kit.base.plain_values import with_tuples


def record_of(kind: Any, plain: Mapping[str, Any]) -> Any:
    """A record of this kind, tuples and records inside it included, of the values that JSON made of it.

    TypeError for a value that is missing, unknown, or of another type.
    """
    if not isinstance(plain, Mapping):
        raise TypeError(f"{kind.__name__} is {plain!r:.80}; it must be a dictionary of its values by name.")
    values = with_tuples(plain)
    values |= {name: record_of(inner, values[name]) for name, inner in _inner(kind).items() if name in values}
    record = kind(**values)
    for name, (types, parts) in _types(kind).items():
        value = getattr(record, name)
        inside = value.values() if isinstance(value, Mapping) else value
        if not _is_of(value, types) or (parts and not all(_is_of(part, parts) for part in inside)):
            raise TypeError(f"{kind.__name__} has {name} = {value!r:.80}, which is of another type.")
    return record


@functools.cache
def _inner(kind: Any) -> Mapping[str, Any]:
    """Kinds of the records inside a record, by name of the value."""
    return {name: hint for name, hint in get_type_hints(kind).items() if is_dataclass(hint)}


@functools.cache
def _types(kind: Any) -> dict[str, tuple[tuple[type, ...], tuple[type, ...]]]:
    """Types that each value may have, and those of what is in it, by name of the value."""
    hints = get_type_hints(kind)
    return {field.name: _allowed(hints[field.name]) for field in fields(kind)}


def _is_of(value: object, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of these types; True and False are no numbers, as Python has them."""
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _allowed(hint: Any) -> tuple[tuple[type, ...], tuple[type, ...]]:
    if get_origin(hint) in (tuple, Mapping):
        *_, inside = [part for part in get_args(hint) if part is not Ellipsis]
        return (get_origin(hint),), _allowed(inside)[0]
    each = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple({*each, *((int,) if float in each else ())}), ()
