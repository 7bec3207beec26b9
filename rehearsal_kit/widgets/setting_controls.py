"""Settings that can be changed while a run goes on: sliders, fields and menus that show what is in force."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import ipywidgets as widgets

from rehearsal_kit.base.settings import POLICIES
from rehearsal_kit.learning.strategies.choice import OURS, WEIGHTS, named_strategy, plain_strategy
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.records import Applied
from rehearsal_kit.session.session import Session
from rehearsal_kit.widgets.buttons import allow, row
from rehearsal_kit.widgets.requests import Requests, spelt

MOST = 2**20
TOOLTIPS = {
    "batch": "New samples per rank and step, from the next mini-batch on",
    "candidates": "Samples of a mini-batch that a full buffer is offered, per rank",
    "distillation": "Stored samples drawn to compare their outputs (DER, DERpp), per rank",
    "capacity": "Samples that the buffers of all ranks together may hold",
    "policy": "What stays in the buffer",
    "strategy": "What is trained on and with which loss",
    "alpha": "Weight of the distillation",
    "beta": "Weight of the representatives",
}
_Value = float | str


class SettingControls:
    """One widget per setting; each change is one wish, and the ranks' answer moves the widget."""

    def __init__(self, session: Session, wishes: Requests) -> None:
        self._session = session
        self._wishes = wishes
        self.chosen = _chosen(session)
        """What the run was started with."""
        self.widgets = _made(self.chosen, session.strategy)
        """Widgets by name of the setting, as in `Session.steer`."""
        self._known: dict[str, _Value] = {name: widget.value for name, widget in self.widgets.items()}
        """What each was last told, by a person or by the ranks: its echo is not a new wish."""
        for name, widget in self.widgets.items():
            widget.observe(lambda change, name=name: self._on_change(name, change["new"]), "value")
        shown = ("learning_rate", "representatives")
        self.main = row([self.widgets[name] for name in shown])
        more = row([widget for name, widget in self.widgets.items() if name not in shown])
        self.more = widgets.Accordion([more], titles=("more settings",), selected_index=None)
        self._show_weights()

    def __getitem__(self, name: str) -> Any:
        """The widget of a setting."""
        return self.widgets[name]

    def refresh(self, applied: list[Applied], why_not: str) -> None:
        """Show what is in force, and whether it can be changed now."""
        self._follow(applied)
        for name, widget in self.widgets.items():
            allow(widget, why_not, tooltip=TOOLTIPS.get(name, "Takes effect on all ranks at one step"))

    def _on_change(self, name: str, value: _Value) -> None:
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
        newest = max((record.number for record in applied if record.holder == session.holder), default=0)
        on_its_way = newest < self._wishes.newest and not session.refused
        if not applied or on_its_way:
            return
        for name, widget in self.widgets.items():
            value = applied[-1].settings.get(name, self._known[name])
            if value != self._known[name] and isinstance(value, str) == isinstance(widget.value, str):
                self._known[name] = value
                _reach(widget, value)
                widget.value = value
        self._show_weights()

    def _show_weights(self) -> None:
        kind = next((kind for kind in OURS if kind.__name__ == self.widgets["strategy"].value), None)
        has = {field.name for field in fields(kind)} if kind is not None else set()
        for name in WEIGHTS:
            self.widgets[name].layout.display = None if name in has else "none"


def _chosen(session: Session) -> dict[str, _Value]:
    training, rehearsal = session.training, session.rehearsal
    values: dict[str, _Value] = {
        "learning_rate": training.learning_rate,
        "representatives": rehearsal.representatives,
        "batch": training.batch,
        "candidates": rehearsal.candidates,
        "distillation": rehearsal.distillation,
        "policy": rehearsal.policy,
    }
    if not isinstance(rehearsal.capacity, str):  # given in bytes it has no field
        values["capacity"] = rehearsal.capacity
    return {**values, **plain_strategy(session.strategy)}


def _made(values: Mapping[str, Any], strategy: Strategy) -> dict[str, Any]:
    made = {
        "learning_rate": _learning_rate_slider(values["learning_rate"]),
        "representatives": _whole_slider("representatives", values["representatives"]),
        "strategy": _menu("strategy", [kind.__name__ for kind in OURS], strategy.name),
        **{name: _weight(name, getattr(strategy, name, getattr(_DEFAULTS, name))) for name in WEIGHTS},
        "policy": _menu("policy", [*POLICIES], values["policy"]),
        "batch": _whole("batch", values["batch"], low=1),
        "candidates": _whole("candidates", values["candidates"], low=0),
    }
    if "capacity" in values:
        made["capacity"] = _whole("capacity", values["capacity"], low=1)
    return {**made, "distillation": _whole("distillation", values["distillation"], low=0)}


_DEFAULTS: Any = named_strategy("DERpp")


def _menu(name: str, options: list[str], value: str) -> Any:
    return widgets.Dropdown(
        options=list(dict.fromkeys([*options, value])), value=value, description=name,
        style={"description_width": "auto"}, layout={"width": "168px"},
    )  # fmt: skip


def _whole(name: str, value: int, *, low: int) -> Any:
    return widgets.BoundedIntText(
        value=value, min=low, max=max(MOST, value), description=name, continuous_update=False,
        style={"description_width": "auto"}, layout={"width": "136px"},
    )  # fmt: skip


def _weight(name: str, value: float) -> Any:
    return widgets.BoundedFloatText(
        value=value, min=0, max=1e6, step=0.1, description=name, continuous_update=False,
        style={"description_width": "auto"}, layout={"width": "130px"},
    )  # fmt: skip


def _learning_rate_slider(value: float) -> Any:
    slider = widgets.FloatLogSlider(
        value=1e-3, min=-6, max=-1, step=0.05, readout_format=".2e", description="learning rate",
        continuous_update=False, style={"description_width": "84px"}, layout={"width": "290px"},
    )  # fmt: skip
    _reach(slider, value)
    slider.value = value
    return slider


def _whole_slider(name: str, value: int) -> Any:
    return widgets.IntSlider(
        value=value, min=0, max=max(64, 2 * value), description=name,
        continuous_update=False, style={"description_width": "112px"}, layout={"width": "290px"},
    )  # fmt: skip


def _reach(widget: Any, value: _Value) -> None:
    """Widen a widget that cannot show this value."""
    if isinstance(value, str):
        if value not in widget.options:
            widget.options = [*widget.options, value]
        return
    place = math.log10(value) if isinstance(widget, widgets.FloatLogSlider) else value
    widget.min = min(widget.min, math.floor(place))
    widget.max = max(widget.max, math.ceil(place))
