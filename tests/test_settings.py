"""Settings and commands refuse what is not allowed and say what is; they survive the wire."""

from __future__ import annotations

import math

import pytest

from rehearsal_kit.commands import Arrived, FinishStream, Pause, Resume, SetAside, Steer, Stop, Watch, Wish
from rehearsal_kit.errors import RehearsalKitError, SettingsError
from rehearsal_kit.settings import Rehearsal, Training

COMMANDS = [
    Arrived(name="a", path="/a.cxi", region=(0.0, 4.0, 1.0, 5.0), held_out=None, digest="0"),
    SetAside(name="a", path="/a", reason="torn"),
    Watch(pattern="/x/*.cxi"),
    Steer(representatives=3),
    Steer(learning_rate=1e-4),
    Pause(),
    Resume(),
    Stop(),
    FinishStream(),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: type(c).__name__)
def test_a_command_survives_json(command):
    assert Wish.from_json(Wish(4, command).to_json()) == Wish(4, command)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (Training, {"batch": 0}),
        (Training, {"epochs": 1.5}),
        (Training, {"learning_rate": math.nan}),
        (Training, {"learning_rate": -1.0}),
        (Training, {"batch": True}),
        (Rehearsal, {"capacity": 0}),
        (Rehearsal, {"representatives": -1}),
        (Rehearsal, {"candidates": "8"}),
        (Steer, {}),
        (Steer, {"learning_rate": math.inf}),
        (Steer, {"representatives": 2.5}),
        (Arrived, {"name": "", "path": "x"}),
        (Arrived, {"name": "a", "path": "x", "region": (3.0, 1.0, 0.0, 2.0)}),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(make, values):
    with pytest.raises(SettingsError, match=r"must be|takes any of"):
        make(**values)


def test_one_base_catches_every_error_and_a_wrong_value_is_a_value_error():
    assert issubclass(SettingsError, RehearsalKitError)
    assert issubclass(SettingsError, ValueError)


@pytest.mark.parametrize(
    "text",
    [
        '{"number": 1, "kind": "Explode"}',
        '{"number": 1, "kind": "Pause", "x": 1}',
        '{"number": -1, "kind": "Pause"}',
    ],
)
def test_an_unknown_command_is_refused(text):
    with pytest.raises(SettingsError):
        Wish.from_json(text)
