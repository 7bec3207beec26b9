"""Strategies by name and weights: how they cross a process boundary and are changed while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.plain_values import plain_value
from rehearsal_kit.base.settings import SETTINGS, Rehearsal, Training
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.learning.stored_outputs import stores_outputs
from rehearsal_kit.learning.strategies.losses import NO_CLASSES, supervised_loss
from rehearsal_kit.learning.strategies.registry import STRATEGIES, strategy_class
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.commands import Steer

OURS: tuple[type[Any], ...] = tuple(map(strategy_class, STRATEGIES))
WEIGHTS = tuple(name for name, setting in SETTINGS.items() if setting.owner == "strategy")
EARLIER: Mapping[str, Mapping[str, Any]] = {"ER": {"balance": "samples"}, "DERpp": {"draws": 2}}
"""What strategies did before it could be chosen: runs of versions that wrote nothing of it go on with it."""


def named_strategy(name: str, **values: Any) -> Strategy:
    """One of ours by its name, as on a command line; SettingsError names those there are."""
    kinds = {kind.__name__.lower(): kind for kind in OURS}
    aliases = {
        "der++": "derpp",
        "der++-ace": "derppace",
        "er-ace": "erace",
        "mean-er": "meaner",
        "cls-er": "clser",
        "a-gem": "agem",
        "scratch": "fromscratch",
    }
    kind = kinds.get(aliases.get(name.lower(), name.lower()))
    if kind is None:
        raise SettingsError(
            f"strategy {name!r} is unknown; known are {', '.join(kind.__name__ for kind in OURS)}."
        )
    allowed = {field.name for field in fields(kind)}
    if unknown := [value for value in values if value not in allowed]:
        raise SettingsError(
            f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(allowed))}."
        )
    made: Strategy = kind(**values)
    return made


def recorded_strategy(name: str, **values: Any) -> Strategy:
    """One of ours as a run folder, a ledger or a checkpoint has it, of this version or an earlier one."""
    return named_strategy(name, **{**EARLIER.get(name, {}), **values})


def as_recorded(strategy: Strategy, plain: Mapping[str, Any]) -> Strategy:
    """A strategy that is given again, as an earlier version had it that wrote nothing of a field."""
    earlier = EARLIER.get(strategy.name, {}) if isinstance(strategy, OURS) else {}
    missing = {name: value for name, value in earlier.items() if name not in plain}
    return _with(strategy, **missing) if missing else strategy


def plain_strategy(strategy: Strategy) -> dict[str, float | str]:
    """Its name and weights as plain values."""
    weights = {name: plain_value(getattr(strategy, name)) for name in WEIGHTS if _has(strategy, name)}
    return {"strategy": strategy.name, **weights}


def own_code(strategy: Strategy) -> str:
    """What of a strategy its name and weights do not make again, in words; empty if they make all."""
    if type(strategy) not in OURS:
        return f"the strategy {strategy.name} is not one of ours"
    if getattr(strategy, "loss", supervised_loss) is not supervised_loss:
        return f"the loss of {strategy.name} is one of your own"
    return ""


def steer_to(strategy: object) -> Mapping[str, Any]:
    """What `Steer` is given to switch to one of ours; SettingsError for a strategy of somebody's own."""
    if isinstance(strategy, str):
        known = {name.lower(): name for name in STRATEGIES}
        meant = known.get(strategy.lower(), "ER")
        raise SettingsError(
            f"strategy is {strategy!r}, a text; give the strategy itself, such as rk.{meant}()."
        )
    if type(strategy) not in OURS:
        raise SettingsError(
            f"strategy is {strategy!r}; a run can be switched to "
            f"{', '.join(kind.__name__ for kind in OURS)}. A strategy of your own has to be there "
            "from the beginning: Session(strategy=...)."
        )
    assert isinstance(strategy, Strategy)  # noqa: S101 - for the type checker
    return plain_strategy(strategy)


def switched(current: Strategy, command: Steer) -> Strategy:
    """The strategy in force after a command; an own loss stays. SettingsError for weights it has not."""
    weights, name = command.values("strategy"), command.values("run").get("strategy")
    if name is not None and name != current.name:
        loss = {"loss": getattr(current, "loss")} if _has(current, "loss") else {}  # noqa: B009 - its base has none
        return recorded_strategy(name, **weights, **loss)
    missing = [weight for weight in weights if not _has(current, weight)]
    if missing:
        raise SettingsError(f"{current.name} has no {', '.join(missing)}; give the strategy as well.")
    return _with(current, **weights) if weights else current


def require_suited(strategy: Strategy, rehearsal: Rehearsal, training: Training) -> None:
    """SettingsError where these settings give a strategy nothing of what its loss is about."""
    if strategy.asks_plastic_average and training.plastic_average is None:
        raise SettingsError(
            f"{strategy.name} holds the network to the better of two averages of its weights, but "
            f"average is {training.average} and plastic_average None; begin the run with "
            "Training(average=0.999, plastic_average=0.9)."
        )
    if strategy.asks_average and training.average is None:
        raise SettingsError(
            f"{strategy.name} holds the network to the average of its weights, but average is None, so there "
            "is none; begin the run with Training(average=0.99)."
        )
    if strategy.shares_draw and not (strategy.replays and rehearsal.representatives):
        raise SettingsError(
            f"{strategy.name} compares its representatives with their stored outputs, but representatives is "
            f"{rehearsal.representatives if strategy.replays else 'nothing to it (replays is False)'}; give "
            "some, or, for DERpp, draws=2 and distillation=..., which are drawn a second time."
        )
    if strategy.distils and not strategy.shares_draw and not rehearsal.distillation:
        raise SettingsError(
            f"{strategy.name} compares stored outputs, but distillation is 0; give distillation=... (of "
            "Rehearsal, or steered together with it), samples drawn a second time."
        )


def require_stored(strategy: Strategy, layout: RowLayout | None) -> None:
    """SettingsError where the buffer of a run that goes on lacks what a strategy needs."""
    if layout is None and (strategy.replays or strategy.distils):
        raise SettingsError(
            f"this run keeps no buffer, so it cannot be switched to {strategy.name}; start it with ER (with "
            "representatives=0 if nothing is to be replayed at first)."
        )
    if layout is not None and strategy.distils and not stores_outputs(layout):
        raise SettingsError(
            f"the buffer of this run stores no outputs, which {strategy.name} needs; start a run that is to "
            "be switched with Rehearsal(outputs=True)."
        )


def require_classes(strategy: Strategy, signature: Signature) -> None:
    """SettingsError where the loss of a strategy is about classes and there are none."""
    if (strategy.for_classes or strategy.asks_present) and not signature.classes:
        raise SettingsError(NO_CLASSES)


def _has(strategy: Any, name: str) -> bool:
    return is_dataclass(strategy) and any(field.name == name for field in fields(strategy))


def _with(strategy: Any, **changes: Any) -> Strategy:
    changed: Strategy = replace(strategy, **changes)
    return changed
