"""Settings that can be changed while a run goes on: sliders, fields and menus that show what is in force."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import ipywidgets as widgets

from rehearsal_kit.base.limits import Whole, Word, WordOrReal
from rehearsal_kit.base.settings import SETTINGS
from rehearsal_kit.base.steerable import OFF, Setting, Value
from rehearsal_kit.learning.strategies.choice import OURS, WEIGHTS, named_strategy, plain_strategy
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.record.records import Applied
from rehearsal_kit.session.session import Session
from rehearsal_kit.widgets.buttons import allow, row
from rehearsal_kit.widgets.requests import Requests, spelt


class SettingControls:
    """One widget per setting; each change is one wish, and the ranks' answer moves the widget."""

    def __init__(self, session: Session, wishes: Requests) -> None:
        self._session = session
        self._wishes = wishes
        self.chosen = _in_force_at_first(session)
        """What the run was started with."""
        self.widgets = _made(self.chosen)
        """Widgets by name of the setting, as in `Session.steer`."""
        self._at_first = {name: _read(SETTINGS[name], widget.value) for name, widget in self.widgets.items()}
        """What each showed in the beginning."""
        self._known = dict(self._at_first)
        """What each was last told, by a person or by the ranks: its echo is not a new wish."""
        for name, widget in self.widgets.items():
            widget.observe(lambda change, name=name: self._on_change(name, change["new"]), "value")
        self.main = row([widget for name, widget in self.widgets.items() if SETTINGS[name].slider])
        more = row([widget for name, widget in self.widgets.items() if not SETTINGS[name].slider])
        self.more = widgets.Accordion([more], titles=("more settings",), selected_index=None)
        self._show_weights()

    def __getitem__(self, name: str) -> Any:
        """The widget of a setting."""
        return self.widgets[name]

    def refresh(self, applied: list[Applied], why_not: str) -> None:
        """Show what is in force, and whether it can be changed now."""
        self._follow(applied)
        for name, widget in self.widgets.items():
            allow(widget, why_not, tooltip=SETTINGS[name].text)

    def _on_change(self, name: str, shown: Value) -> None:
        value = _read(SETTINGS[name], shown)
        if value == self._known[name]:
            return
        self._known[name] = value
        if name == "strategy":
            self._switch(str(value))
        else:
            steer: Any = {name: value}
            self._wishes.ask(spelt({name: value}), lambda: self._session.steer(**steer))

    def _switch(self, name: str) -> None:
        ours = name in [kind.__name__ for kind in OURS]
        strategy = named_strategy(name) if ours else self._session.strategy
        self._show_weights()
        self._wishes.ask(spelt(plain_strategy(strategy)), lambda: self._session.steer(strategy=strategy))

    def _follow(self, applied: list[Applied]) -> None:
        """Move to what is in force, unless a wish of this panel is still on its way."""
        session = self._session
        newest = max((record.number for record in applied if record.holder in session.holders), default=0)
        on_its_way = newest < self._wishes.newest and not session.refused
        if not applied or on_its_way:
            return
        for name, widget in self.widgets.items():
            # One that may be off and is not told of is as the run began, even if it was rolled back to that.
            untold = self._at_first if SETTINGS[name].may_be_off else self._known
            value = applied[-1].settings.get(name, untold[name])
            if value != self._known[name] and SETTINGS[name].is_plain(value):
                self._known[name] = value
                _reach(widget, value)
                widget.value = _shown(SETTINGS[name], value)
        self._show_weights()

    def _show_weights(self) -> None:
        kind = next((kind for kind in OURS if kind.__name__ == self.widgets["strategy"].value), None)
        has = {field.name for field in fields(kind)} if kind is not None else set()
        for name in WEIGHTS:
            self.widgets[name].layout.display = None if name in has else "none"


def _in_force_at_first(session: Session) -> dict[str, Value]:
    live_settings = LiveSettings(
        training=session.training, rehearsal=session.rehearsal, strategy=session.strategy
    )
    return live_settings.plain


def _made(chosen: Mapping[str, Value]) -> dict[str, Any]:
    """Widgets of all settings that have a value or may be off; of weights, also those of other strategies."""
    values = {name: value for kind in OURS for name, value in plain_strategy(kind()).items()}
    values |= {**{name: OFF for name, setting in SETTINGS.items() if setting.may_be_off}, **chosen}
    return {name: _control(setting, values[name]) for name, setting in SETTINGS.items() if name in values}


def _control(setting: Setting, value: Any) -> Any:
    limits, slider = setting.limits, setting.slider
    looks: dict[str, Any] = {"description": setting.label, "style": {"description_width": "auto"}}
    if isinstance(limits, Word):
        words = limits.words or [kind.__name__ for kind in OURS]
        options = list(dict.fromkeys([*words, value]))
        return widgets.Dropdown(options=options, value=value, layout={"width": "168px"}, **looks)
    looks |= {"continuous_update": False, "layout": {"width": "136px" if slider is None else "290px"}}
    if setting.is_text:
        words = limits.words if isinstance(limits, WordOrReal) else [OFF]
        looks |= {"placeholder": OFF if setting.may_be_off else "", "layout": {"width": "168px"}}
        return widgets.Combobox(value=_shown(setting, value), options=words, **looks)
    if slider is None:
        ends = {"min": limits.low, "max": limits.high}
        if isinstance(limits, Whole):
            return widgets.BoundedIntText(value=value, **ends, **looks)
        return widgets.BoundedFloatText(value=value, **ends, step=0.1, **looks)
    if isinstance(limits, Whole):
        return widgets.IntSlider(value=value, min=slider[0], max=max(slider[1], 2 * value), **looks)
    low, high = map(math.log10, slider)
    made = widgets.FloatLogSlider(
        value=slider[0], min=low, max=high, step=0.05, readout_format=".2e", **looks
    )
    _reach(made, value)
    made.value = value
    return made


def _shown(setting: Setting, value: Value) -> Value:
    """The value as its widget has it: text where it may be a number or a word."""
    return str(value) if setting.is_text else value


def _read(setting: Setting, shown: Value) -> Value:
    """The value that a widget shows; an empty field is off, and `Steer` refuses what is not allowed."""
    if not setting.is_text:
        return shown
    text = str(shown).strip() or (OFF if setting.may_be_off else "")
    try:
        return setting.limits.types[-1](text)
    except ValueError:
        return text


def _reach(widget: Any, value: Value) -> None:
    """Widen a widget that cannot show this value."""
    if isinstance(widget, widgets.Text):
        return
    if isinstance(value, str):
        if value not in widget.options:
            widget.options = [*widget.options, value]
        return
    place = math.log10(value) if isinstance(widget, widgets.FloatLogSlider) else value
    widget.min = min(widget.min, math.floor(place))
    widget.max = max(widget.max, math.ceil(place))
