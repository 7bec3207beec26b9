"""What a person asks of a batch system: how many nodes and workers, for how long, on whose account."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer, require_number, require_switch
from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.batch.site import Site, filled, read_site

MARGIN_S = 120.0
"""Seconds before the end of a job in which runs take their last checkpoint."""
WORD = re.compile(r"[\w.+:@/=,%-]*")
"""What an account, a queue or a name may be made of: anything else could be another line of the script."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that is to hold a cluster of nodes * workers_per_node workers; for `launch`.

    SettingsError for what no job can be, and for a site that is not known.
    """

    site: str | Path = "slurm"
    """slurm, pbs, the name of a machine, or the path of a TOML file that describes one."""
    nodes: int = 1
    workers_per_node: int | None = None
    """None: one per GPU, or one on CPUs."""
    time: str = "1:00:00"
    """[days-]hours:minutes:seconds, or minutes."""
    gpus: int | None = None
    """GPUs of every node that are used; None: as many as a node of the site has; 0: CPUs."""
    account: str = ""
    queue: str = ""
    """Slurm calls it partition."""
    name: str = "rehearsal-kit"
    interface: str = ""
    """Network interface of the nodes; empty: the site's, or the one that leads to the login node."""
    options: tuple[str, ...] = ()
    """Further options of the batch system, as --mem=64G."""
    goes_on: bool = False
    """Whether another job goes on with the run when the time of this one is over."""
    margin_s: float = MARGIN_S
    """Seconds before the end of its time in which runs take their last checkpoint."""
    idle_timeout_s: float = 3600.0
    """Seconds after which it ends, if nobody is connected and no rank tells anything."""

    def __post_init__(self) -> None:
        make_plain(self)
        _ = self.described  # a site that is not known is refused here
        require_integer("nodes", self.nodes, low=1, high=100_000)
        if self.workers_per_node is not None:
            require_integer("workers_per_node", self.workers_per_node, low=1, high=1024)
        if self.gpus is not None:
            require_integer("gpus", self.gpus, low=0, high=1024)
        for what in ("account", "queue", "name", "interface"):
            if not WORD.fullmatch(getattr(self, what)):
                raise SettingsError(
                    f"{what} is {getattr(self, what)!r}; it must be one word of letters, digits and . + : @ "
                    "/ = , % _ -."
                )
        if not self.name:
            raise SettingsError("name is empty; give one, such as rehearsal-kit.")
        for option in self.options:
            if not option.startswith("-") or not option.isprintable():
                raise SettingsError(
                    f"option {option!r} is none of a batch system; it must begin with -, as --mem=64G."
                )
        require_switch("goes_on", self.goes_on)
        require_number("idle_timeout_s", self.idle_timeout_s, low=1.0, high=1e9)
        require_number("margin_s", self.margin_s, low=1.0, high=65_000.0)  # Slurm takes no more
        if self.time_s <= self.margin_s:
            raise SettingsError(
                f"time is {self.time!r}, {self.time_s:g} s, of which the last {self.margin_s:g} s are for "
                "the last checkpoint; ask for more, or for a smaller margin_s."
            )

    @functools.cached_property
    def described(self) -> Site:
        """What is particular to its site."""
        return read_site(self.site)

    @property
    def time_s(self) -> float:
        """Seconds of wall time, in whole minutes: Slurm counts no others."""
        return 60.0 * -(-seconds_of(self.time) // 60)

    @property
    def gpus_used(self) -> int:
        """GPUs of every node that are asked for."""
        return self.described.gpus_per_node if self.gpus is None else self.gpus

    @property
    def kind(self) -> str:
        """What workers train on: cpu or cuda."""
        return "cuda" if self.gpus_used else "cpu"

    @property
    def workers(self) -> int:
        """Workers of one node."""
        return self.workers_per_node or self.gpus_used or 1

    def filled(self, text: str) -> str:
        """A text of the site with the numbers of this job in it."""
        return filled(text, nodes=self.nodes, cpus=self.workers, gpus=self.gpus_used)


def seconds_of(time: str) -> float:
    """Seconds of a wall time as batch systems write it; SettingsError says how that is."""
    *days, rest = str(time).split("-")
    parts = rest.split(":")
    if len(days) <= 1 and len(parts) <= 3 and all(re.fullmatch(r"\d{1,6}", p) for p in [*days, *parts]):
        numbers = [int(part) for part in parts]
        # Hours come first after days, and where there are three.
        first = [] if days or len(numbers) == 3 else [0]
        hours, minutes, seconds = [*first, *numbers, 0, 0][:3]
        if total := ((int(days[0] if days else 0) * 24 + hours) * 60 + minutes) * 60 + seconds:
            return float(total)
    raise SettingsError(
        f"time is {time!r}; it must be minutes, as 90, or minutes:seconds, or hours:minutes:seconds, as "
        "1:30:00, or days-hours:minutes:seconds."
    )


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
