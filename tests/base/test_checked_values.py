import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import pytest

from rehearsal_kit.base.checked_values import record_of


@dataclass(frozen=True)
class Inner:
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    seconds: float
    count: int | None = None
    inner: Inner = Inner()
    place: Mapping[str, str]
    switch: bool = True
    numbers: tuple[int, ...] = (1, 2)


WHOLE = Outer(name="a", seconds=1.5, count=3, inner=Inner(("b", "c")), place={"folder": "/d"})
PLAIN = json.loads(json.dumps(asdict(WHOLE)))


def test_a_record_comes_back_from_json_with_its_tuples_and_the_records_inside_it():
    assert record_of(Outer, PLAIN) == WHOLE
    few = {name: PLAIN[name] for name in ("name", "place")}
    assert record_of(Outer, few | {"seconds": 2}) == replace(WHOLE, seconds=2, count=None, inner=Inner())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": 7}, "Outer has name = 7, which is of another type"),
        ({"seconds": "7"}, "Outer has seconds = '7'"),
        ({"seconds": True}, "Outer has seconds = True, which is of another type"),
        ({"count": False}, "Outer has count = False"),
        ({"switch": 1}, "Outer has switch = 1"),
        ({"numbers": [1, True]}, r"Outer has numbers = \(1, True\)"),
        ({"place": {"folder": 7}}, "Outer has place"),
        ({"inner": {"paths": [7]}}, r"Inner has paths = \(7,\)"),
        ({"inner": {"path": []}}, "unexpected keyword argument 'path'"),
        ({"inner": ["b"]}, r"Inner is \('b',\); it must be a dictionary"),
        ({"other": 7}, "unexpected keyword argument 'other'"),
    ],
)
def test_what_is_unknown_or_of_another_type_is_refused_in_words(changes, says):
    with pytest.raises(TypeError, match=says):
        record_of(Outer, {**PLAIN, **changes})


def test_what_is_missing_or_no_dictionary_is_refused_in_words():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'name'"):
        record_of(Outer, {name: value for name, value in PLAIN.items() if name != "name"})
    with pytest.raises(TypeError, match="Outer is 7; it must be a dictionary of its values by name"):
        record_of(Outer, 7)
