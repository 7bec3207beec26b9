"""The table of steerable settings is the only place: all that handles a setting follows from its entry."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace

import pytest

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import Real, Whole, Word, WordOrReal
from rehearsal_kit.base.settings import SETTINGS, Rehearsal, Training
from rehearsal_kit.base.steerable import OFF
from rehearsal_kit.learning.strategies.choice import OURS, named_strategy
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.record.commands import Steer, Wish
from rehearsal_kit.record.records import Applied
from rehearsal_kit.session.session import Session
from rehearsal_kit.session.steering import Steering
from rehearsal_kit.widgets.requests import Requests
from rehearsal_kit.widgets.setting_controls import SettingControls


def value_of(setting, place):
    """One of two allowed values: that at the beginning (0) and that steered to (1)."""
    limits = setting.limits
    if isinstance(limits, Whole):
        return min(limits.low + 5, limits.high - 1) + place
    if isinstance(limits, WordOrReal):
        return (limits.words[0], (limits.low + limits.high) / 2)[place]
    if isinstance(limits, Real):
        return (limits.low + limits.high) / (4 - 2 * place)
    return (limits.words or ("DERpp", "AGEM"))[-place]


def owned(owner):
    return {name: value_of(each, 0) for name, each in SETTINGS.items() if each.owner == owner}


def owner_of(setting):
    """Whose field it is; of strategies, the first that has it, DERpp where that does not matter."""
    owners = {"training": Training, "rehearsal": Rehearsal}
    having = [kind for kind in (DERpp, *OURS) if setting.name in {field.name for field in fields(kind)}]
    return owners.get(setting.owner) or next(iter(having), DERpp)


def at_first(setting):
    """What is in force: of the owner of a setting, all that may change."""
    strategy = owner_of(setting) if setting.owner == "strategy" else DERpp
    has = {field.name for field in fields(strategy)}
    return LiveSettings(
        training=Training(**owned("training"), average=0.5),
        rehearsal=Rehearsal(**owned("rehearsal")),
        strategy=strategy(**{name: value for name, value in owned("strategy").items() if name in has}),
    )


class Steered(Steering):
    """A session that only keeps what it was asked."""

    def __init__(self, setting=SETTINGS["strategy"]):
        live_settings = at_first(setting)
        self.training, self.rehearsal = live_settings.training, live_settings.rehearsal
        self.strategy = live_settings.strategy
        self.holders, self.refused, self.asked = ("",), "", []

    def _wish(self, command):
        self.asked.append(command)
        return len(self.asked)

    def _require_going(self, kind):
        pass


every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
may_be_off = pytest.mark.parametrize(
    "setting", [each for each in SETTINGS.values() if each.may_be_off], ids=lambda setting: setting.name
)
every_field = pytest.mark.parametrize(
    "setting", [each for each in SETTINGS.values() if each.owner != "run"], ids=lambda setting: setting.name
)


@every_setting
def test_it_is_steered_written_down_and_in_force(setting):
    session, wanted = Steered(setting), value_of(setting, 1)
    session.steer(**{setting.name: named_strategy(wanted) if setting.name == "strategy" else wanted})
    (command,) = session.asked
    wish = Wish(7, command)
    assert Wish.from_json(wish.to_json()) == wish
    plain = json.loads(wish.to_json())
    assert {name: plain[name] for name in SETTINGS} == {**dict.fromkeys(SETTINGS), setting.name: wanted}
    before = at_first(setting)
    after = before.steered(command)
    assert (before.plain[setting.name], after.plain[setting.name]) == (value_of(setting, 0), wanted)
    assert before.digest != after.digest
    assert before.steered(Steer(**after.plain)) == after  # as checkpoints keep it


@may_be_off
def test_it_is_steered_to_off_and_back_and_checkpoints_keep_both(setting):
    owner = {"training": Training(), "rehearsal": Rehearsal()}
    first = at_first(setting)
    never = replace(first, **{setting.owner: replace(owner[setting.owner], **{setting.name: None})})
    assert setting.name not in never.plain  # as of a run of a version that could not steer it
    for begun in (never, first):
        off = begun.steered(Steer(**{setting.name: OFF}))
        assert getattr(getattr(off, setting.owner), setting.name) is None
        assert json.loads(Wish(1, Steer(**off.plain)).to_json())[setting.name] == OFF
        assert begun.steered(Steer(**off.plain)) == off
        back = off.steered(Steer(**{setting.name: value_of(setting, 1)}))
        assert back.plain[setting.name] == value_of(setting, 1)
        assert begun.steered(Steer(**back.plain)) == back
        assert begun.steered(Steer(strategy="DERpp")) == begun


@every_setting
def test_what_is_not_allowed_is_refused_with_its_name(setting):
    limits = setting.limits
    wrong = [True, "so", [1]]
    if isinstance(limits, Whole):
        wrong += [limits.low - 1, limits.high + 1, limits.low + 0.5]
    elif isinstance(limits, Real | WordOrReal):
        wrong += [limits.low - 1, limits.high * 2, float("nan")]
    else:
        wrong = [True, 3, *(["so"] if limits.words else [])]
    for value in wrong:
        with pytest.raises(SettingsError, match=rf"^{setting.name} is .*; it must be "):
            Steer(**{setting.name: value})


@every_field
def test_what_a_run_may_begin_with_it_may_be_steered_to_and_nothing_else(setting):
    """With narrower limits than its owner's a checkpoint could not be taken up again."""
    limits, none_drawn = setting.limits, {"capacity": 2**40, "representatives": 0, "distillation": 0}
    others = none_drawn if setting.owner == "rehearsal" else {}
    ends = [*getattr(limits, "words", ()), *([] if isinstance(limits, Word) else [limits.low, limits.high])]
    for value in ends:
        made = owner_of(setting)(**{**others, setting.name: value})
        assert setting.is_plain(getattr(made, setting.name))
    beyond = ["so"] if isinstance(limits, Word) else [limits.low - 1, limits.high + 1, "so"]
    for value in beyond:
        with pytest.raises(SettingsError, match=setting.name):
            owner_of(setting)(**{**others, setting.name: value})
    if setting.may_be_off:
        owner_of(setting)(**{**others, setting.name: None})


@every_setting
def test_it_has_a_control_with_its_limits_that_steers(setting):
    session, wanted = Steered(setting), value_of(setting, 1)
    controls = SettingControls(session, Requests(session, asked=lambda: None))
    controls.refresh([], "")
    control, limits = controls[setting.name], setting.limits
    assert (control.description, control.tooltip) == (setting.label, setting.text)
    (more,) = controls.more.children
    assert (control in controls.main.children, control in more.children) == (
        setting.slider is not None,
        setting.slider is None,
    )
    if not isinstance(limits, Whole | Real):
        assert set(limits.words) <= set(control.options)
    elif setting.slider is None and not setting.is_text:
        assert (control.min, control.max) == (limits.low, limits.high)
    shown = str if setting.is_text else lambda value: value
    assert control.value == shown(value_of(setting, 0))
    control.value = shown(wanted)
    assert session.asked == [Steer(**{setting.name: wanted})]


def test_every_setting_has_a_control_where_nothing_was_chosen():
    session = Steered()
    session.training, session.rehearsal, session.strategy = Training(), Rehearsal(), named_strategy("ER")
    controls = SettingControls(session, Requests(session, asked=lambda: None))
    without = set(SETTINGS) - set(controls.widgets)
    assert not without, "where its owner may have None, its entry says may_be_off=True"


@may_be_off
def test_a_control_turns_it_off_by_word_or_empty_and_refuses_what_is_no_number(setting):
    session = Steered(setting)
    requests = Requests(session, asked=lambda: None)
    control = SettingControls(session, requests)[setting.name]
    control.value = "much"
    assert (session.asked, setting.allowed in requests.trouble) == ([], True)
    for wanted in ("5", "", "7", f" {OFF} "):
        control.value = wanted
    assert [dict(command.given)[setting.name] for command in session.asked] == [5, OFF, 7, OFF]


@may_be_off
def test_a_control_follows_to_off_and_to_what_the_run_began_with(setting):
    session = Steered(setting)
    controls = SettingControls(session, Requests(session, asked=lambda: None))
    control, said = controls[setting.name], []
    for settings in ({setting.name: OFF}, {setting.name: 0.1}, {}):
        controls.refresh([Applied(rank=0, step=1, number=1, kind="Steer", settings=settings, digest="")], "")
        said.append(control.value)
    assert said == [OFF, "0.1", str(value_of(setting, 0))]
    assert session.asked == []


def test_steer_names_every_setting_with_its_limits():
    signature, said = inspect.signature(Session.steer), inspect.getdoc(Session.steer)
    assert set(signature.parameters) == {"self", *SETTINGS}
    for name, setting in SETTINGS.items():
        keyword = signature.parameters[name]
        assert (keyword.kind, keyword.default) == (keyword.KEYWORD_ONLY, None)
        assert f"{name}: {setting.allowed}. {setting.text}." in said or name == "strategy"


def test_an_unknown_setting_is_refused_with_the_one_that_was_meant():
    for steer in (Steered().steer, Steer):
        with pytest.raises(SettingsError, match=r"'learning_rat' is not .* did you mean learning_rate\?"):
            steer(learning_rat=1e-3)
        with pytest.raises(
            SettingsError, match=r"'epochs' is not a setting that may change .* representatives, "
        ):
            steer(epochs=3)
    with pytest.raises(SettingsError, match="'epochs' is not a setting"):
        Wish.from_json('{"number": 1, "kind": "Steer", "epochs": 3}')


def test_ledgers_are_what_they_were():
    """Runs of earlier versions are taken up."""
    line = (
        '{"number": 3, "holder": "k", "kind": "Steer", "learning_rate": 0.0002, "representatives": 5, '
        '"capacity": null, "distillation": null, "candidates": null, "policy": "fifo", "batch": null, '
        '"strategy": "DERpp", "alpha": 0.25, "beta": 1.0}'
    )
    command = Steer(
        learning_rate=2e-4, representatives=5, policy="fifo", strategy="DERpp", alpha=0.25, beta=1.0
    )
    assert Wish.from_json(line) == Wish(3, command, "k")
    written, before = json.loads(Wish(3, command, "k").to_json()), json.loads(line)
    assert [pair for pair in written.items() if pair[0] in before] == [*before.items()]
    assert Wish.from_json('{"number": 3, "kind": "Steer", "batch": 4}') == Wish(3, Steer(batch=4))


def test_ranks_agree_by_a_digest_of_what_may_change():
    strategy = named_strategy("ER", balance="samples")
    counted = LiveSettings(training=Training(), rehearsal=Rehearsal(capacity=500), strategy=strategy)
    in_bytes = replace(counted, rehearsal=Rehearsal(capacity="1 MiB"))
    assert counted.digest == replace(counted, training=Training(epochs=9)).digest
    assert counted.digest != in_bytes.digest
    assert counted.plain.keys() - in_bytes.plain.keys() == {"capacity"}
