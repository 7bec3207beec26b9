"""Settings and commands refuse what is not allowed and say what is; they survive the wire."""

from __future__ import annotations

import math

import pytest

from rehearsal_kit.base.errors import RehearsalKitError, SettingsError
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.record.commands import (
    Arrived,
    FinishStream,
    Pause,
    Resume,
    SetAside,
    Steer,
    Stop,
    Watch,
    Wish,
)

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
        (Steer, {"capacity": 0}),
        (Rehearsal, {"distillation": -1}),
        (Rehearsal, {"policy": "random"}),
        (Rehearsal, {"draw": "classes"}),
        (Rehearsal, {"removal": "largest"}),
        (Rehearsal, {"capacity": "lots"}),
        (Rehearsal, {"capacity": "0 GB"}),
        (Rehearsal, {"capacity": "12"}),
        (Arrived, {"name": "", "path": "x"}),
        (Arrived, {"name": "a", "path": "x", "region": (3.0, 1.0, 0.0, 2.0)}),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(make, values):
    with pytest.raises(SettingsError, match=r"must be|takes any of"):
        make(**values)


@pytest.mark.parametrize("make", [Rehearsal, Steer])
def test_an_unknown_policy_is_refused_with_those_there_are(make):
    said = "policy is 'random'; it must be one of 'quotas', 'reservoir', 'fifo'"
    with pytest.raises(SettingsError, match=said):
        make(policy="random")


@pytest.mark.parametrize("drawn", ["representatives", "distillation"])
def test_no_draw_can_ask_for_more_than_is_ever_held(drawn):
    with pytest.raises(SettingsError, match="at most 20 samples"):
        Rehearsal(**{"representatives": 8, "capacity": 20, drawn: 21})
    with pytest.raises(SettingsError, match="at most 10 samples"):
        Rehearsal(**{"representatives": 8, "capacity": "1 kB", drawn: 11}).samples(100)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1 kB", 1000), ("1KiB", 1024), ("1.5 MiB", 3 * 2**19), ("2 GB", 2 * 10**9), ("7 B", 7)],
)
def test_capacity_in_bytes(text, size):
    assert Rehearsal(representatives=0, capacity=text).samples(7) == size // 7


def test_less_than_one_sample_is_no_capacity():
    with pytest.raises(SettingsError, match="one sample takes 2000 bytes"):
        Rehearsal(capacity="1 kB").samples(2000)


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
