"""Settings and commands refuse what is not allowed and say what is; they survive the wire."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from rehearsal_kit.base.errors import RehearsalKitError, SettingsError
from rehearsal_kit.base.limits import require_number
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.learning.strategies.choice import plain_strategy
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.replay import MeanER
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.commands import (
    Arrived,
    FinishStream,
    Pause,
    Reorder,
    Resume,
    SetAside,
    Skip,
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
        (Training, {"bucket_mib": 0}),
        (Training, {"bucket_mib": math.inf}),
        (Rehearsal, {"capacity": 0}),
        (Recovery, {"fewest": 0}),
        (Recovery, {"fewest": 1.5}),
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


@pytest.mark.parametrize(
    ("make", "name", "wrong"),
    [
        (Training, "bucket_mib", 0),
        (Training, "average", 1.0),
        (Training, "clip_norm", -1.0),
        (Preparation, "scale", "much"),
    ],
)
def test_where_none_is_allowed_that_is_said_and_it_is(make, name, wrong):
    with pytest.raises(SettingsError, match=rf"{name} is {wrong!r}; it must be a number from .*, or None\."):
        make(**{name: wrong})
    assert getattr(make(**{name: None}), name) is None


def test_a_run_that_is_never_started_again_cannot_go_on_with_fewer():
    with pytest.raises(
        SettingsError, match=r"fewest is 1 and restarts 0, .*allow a restart, or leave fewest"
    ):
        Recovery(fewest=1, restarts=0)
    assert Recovery(fewest=1, restarts=1).fewest == 1


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


def test_what_numpy_computed_is_taken_and_kept_as_plain_numbers():
    half = np.float32(0.5)
    training = Training(
        batch=np.int64(8), warmup=half, clip_norm=np.float64(0.5), deterministic=np.bool_(True)
    )
    assert training == Training(batch=8, warmup=0.5, clip_norm=0.5)
    kept = [Training, Rehearsal, Recovery, Preparation, DERpp, MeanER, Steer, Skip, Reorder, Watch, Beamline]
    made = [
        training,
        Rehearsal(capacity=np.int32(90), representatives=np.uint8(3), outputs=np.bool_(False)),
        Recovery(restarts=np.int64(2), stall_s=np.float32(9)),
        Preparation(size=np.int16(32), scale=half),
        DERpp(alpha=half, beta=np.int64(1), draws=np.int64(2)),
        MeanER(balance=half, consistency=half),
        Steer(batch=np.int64(4), learning_rate=half, policy=np.str_("fifo")),
        Skip(task=np.int64(2)),
        Reorder(order=(np.int64(2), np.int64(1))),
        Watch(pattern="/x", existing=np.bool_(False)),
        Beamline(folder="/x", scans=np.int64(2)),
    ]
    assert [type(each) for each in made] == kept
    for each in made:
        plain = each.to_plain() if isinstance(each, Steer) else vars(each)
        inside = [part for v in plain.values() for part in (v if isinstance(v, tuple) else (v,))]
        assert not any(isinstance(value, np.generic) for value in inside), plain
    arguments = ResNet(depth=np.int64(18), classes=np.int64(3), width=np.int64(2)).arguments
    assert json.loads(json.dumps(arguments))["depth"] == 18
    assert require_number("x", np.float32(0.25), low=0, high=1) == 0.25
    for wrong in (np.float32("nan"), np.bool_(True), np.datetime64("2026-11-28")):
        with pytest.raises(SettingsError, match="it must be a finite number"):
            require_number("x", wrong, low=0, high=1)
    with pytest.raises(SettingsError, match="existing is 'no'; it must be True or False"):
        Watch(pattern="/x", existing="no")
    assert plain_strategy(Own(alpha=half)) == {"strategy": "Own", "alpha": 0.5}
    assert type(plain_strategy(Own(alpha=half))["alpha"]) is float


@dataclass(frozen=True)
class Own(Strategy):
    alpha: float = 0.1
