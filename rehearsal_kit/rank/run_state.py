"""Where a run is: what all ranks hold alike besides weights and samples, and what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rehearsal_kit.learning.strategies.choice import WEIGHTS, plain_strategy
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.record.commands import BeginAgain, Steer
from rehearsal_kit.record.replay_queue import Position
from rehearsal_kit.record.run_states import CHANGES, FATES, Event, Fate


@dataclass
class RunState:
    """Changed by commands and steps only, so it is the same on every rank; and only by its own methods."""

    live_settings: LiveSettings
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
    """"finished" or "stopped", from the end of the run until it is reopened."""
    kept: str = ""
    """The outcome that the newest checkpoint says: whether the end of the run is kept already."""
    spoilt: list[range] = field(default_factory=list)
    """Steps that were taken back: outputs made in them are not to be held to."""

    @property
    def position(self) -> Position:
        """Branch and number of the next step."""
        return self.branch, self.step

    def to_plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        plain = {name: getattr(self, name) for name in FATES if name != "live_settings"}
        return {
            **plain,
            "spoilt": [[steps.start, steps.stop] for steps in self.spoilt],
            "in_force": dict(self.live_settings.plain),  # as checkpoints call it since the first of them
        }

    @staticmethod
    def from_plain(plain: Mapping[str, Any], first: LiveSettings) -> RunState:
        """What `to_plain` made; first: the settings that the run began with."""
        values = {name: plain[name] for name in FATES if name != "live_settings"}
        spoilt = [range(*steps) for steps in values.pop("spoilt")]
        in_force = dict(plain["in_force"])
        if in_force.get("strategy") == first.strategy.name:
            has = plain_strategy(first.strategy)  # earlier versions told weights that are no fields, too
            in_force = {name: value for name, value in in_force.items() if name not in WEIGHTS or name in has}
        live_settings = first.steered(Steer(**in_force))
        return RunState(live_settings=live_settings, spoilt=spoilt, **values)

    def stepped(self) -> None:
        """All ranks have begun the step that was next."""
        self.step += 1

    def count_begun(self, tasks: int) -> None:
        """So many tasks were begun, or set aside instead."""
        self.begun = tasks

    def count_command(self, number: int) -> None:
        """A command of this number was applied; 0: of one that the ranks gave themselves."""
        self.command = max(self.command, number)

    def steer(self, live_settings: LiveSettings) -> None:
        """These settings are in force from the next step on."""
        self.live_settings = live_settings

    def pause_by_itself(self, trouble: str) -> None:
        """Wait for a person, who is told of the trouble and of what may help."""
        self.paused, self.trouble = True, trouble

    def count_checkpoint(self) -> None:
        """One more checkpoint was taken, which keeps also whether the run has ended."""
        self.checkpoints += 1
        self.kept = self.outcome

    def take_back(self, began: int) -> None:
        """The steps from that one to now are taken back: outputs made in them do not count."""
        self.spoilt.append(range(began, self.step))

    def finish_stream(self) -> None:
        """No more tasks will come."""
        self.finishing = True

    def reopen(self, *, more_may_come: bool) -> None:
        """Go on after the end; more_may_come: whether the stream of tasks is open again."""
        self.finishing = self.finishing and not more_may_come
        self.change("Reopen")

    def change(self, kind: str) -> None:
        """What a command of this kind makes of the state of the run."""
        change = CHANGES[kind]
        if change.paused is not None:
            self.paused, self.trouble = change.paused, ""
        if change.outcome is not None:
            self.outcome, self.kept = change.outcome, ""

    def restart(self, there: RunState) -> None:
        """Go on where a checkpoint was taken."""
        self._become(there, Event.RESTART)

    def begin_again(self, command: BeginAgain) -> None:
        """Go on as another branch, after `restart`."""
        self.branch, self.branches = command.begins, command.begins + 1
        self.checkpoints = command.checkpoints

    def back_to(self, there: RunState) -> None:
        """Become what was learned there, as a new branch; what the world has brought since stays."""
        branch = self.branches
        self._become(there, Event.ROLL_BACK)
        self.branch, self.branches = branch, branch + 1

    def _become(self, there: RunState, event: Event) -> None:
        for name, fates in FATES.items():
            match fates[event]:
                case Fate.THERE:
                    value = getattr(there, name)
                    setattr(self, name, list(value) if isinstance(value, list) else value)
                case Fate.CLEARED:
                    setattr(self, name, "")
