"""Strategies of this package by their public names; whoever looks here imports none of them, nor torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that type checkers and editors know them as public names
    from rehearsal_kit.learning.strategies.dark import DER as DER
    from rehearsal_kit.learning.strategies.dark import DERpp as DERpp
    from rehearsal_kit.learning.strategies.dark import DERppACE as DERppACE
    from rehearsal_kit.learning.strategies.references import Cumulative as Cumulative
    from rehearsal_kit.learning.strategies.references import FromScratch as FromScratch
    from rehearsal_kit.learning.strategies.references import Incremental as Incremental
    from rehearsal_kit.learning.strategies.replay import AGEM as AGEM
    from rehearsal_kit.learning.strategies.replay import CLSER as CLSER
    from rehearsal_kit.learning.strategies.replay import ER as ER
    from rehearsal_kit.learning.strategies.replay import ERACE as ERACE
    from rehearsal_kit.learning.strategies.replay import MeanER as MeanER

STRATEGIES: Mapping[str, str] = {
    "Incremental": "references",
    "FromScratch": "references",
    "Cumulative": "references",
    "ER": "replay",
    "ERACE": "replay",
    "MeanER": "replay",
    "CLSER": "replay",
    "AGEM": "replay",
    "DER": "dark",
    "DERpp": "dark",
    "DERppACE": "dark",
}
"""The module of this folder in which each lies. The names stand in run folders, so none may change."""


def strategy_class(name: str) -> type[Any]:
    """One of them; KeyError for another name."""
    found: type[Any] = getattr(importlib.import_module(f"{__package__}.{STRATEGIES[name]}"), name)
    return found
