"""Where a run is: what all ranks hold alike besides weights and samples, and what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rehearsal_kit.commands import Steer
from rehearsal_kit.in_force import InForce
from rehearsal_kit.script import Position


@dataclass
class Course:
    """Changed by commands and steps only, so it is the same on every rank."""

    in_force: InForce
    branch: int = 0
    branches: int = 1
    """How many there have been."""
    step: int = 0
    """Number of the next step."""
    checkpoints: int = 0
    """How many were taken."""
    command: int = 0
    """Number of the newest command applied."""
    begun: int = 0
    """Tasks that were begun, or set aside instead."""
    paused: bool = False
    finishing: bool = False
    """Whether no more tasks will come."""
    trouble: str = ""
    """Why the ranks have paused on their own."""
    outcome: str = ""
    """"finished" or "stopped", once the run has ended."""
    spoilt: list[range] = field(default_factory=list)
    """Steps that were taken back: outputs made in them are not to be held to."""

    @property
    def position(self) -> Position:
        """Branch and number of the next step."""
        return self.branch, self.step

    def to_plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        names = ("branch", "branches", "step", "checkpoints", "command", "begun")
        flags = ("paused", "finishing", "trouble")
        return {
            **{name: getattr(self, name) for name in names + flags},
            "spoilt": [[steps.start, steps.stop] for steps in self.spoilt],
            "in_force": dict(self.in_force.plain),
        }

    @staticmethod
    def from_plain(plain: Mapping[str, Any], first: InForce) -> Course:
        """What `to_plain` made; first: the settings that the run began with."""
        values = dict(plain)
        spoilt = [range(*steps) for steps in values.pop("spoilt")]
        in_force = first.steered(Steer(**values.pop("in_force")))
        return Course(in_force=in_force, spoilt=spoilt, **values)

    def back_to(self, there: Course) -> None:
        """Become what was learned there, as a new branch; what the world has brought since stays."""
        self.branch, self.branches = self.branches, self.branches + 1
        self.step, self.begun, self.spoilt = there.step, there.begun, list(there.spoilt)
        self.in_force, self.trouble = there.in_force, ""
