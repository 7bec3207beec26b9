"""What is particular to a batch system and its machine: read from a TOML file, ours or the person's."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer, require_one_of

SITES = Path(__file__).parent / "sites"
SYSTEMS = ("slurm", "pbs")
FILLED_IN = ("nodes", "cpus", "gpus")


@dataclass(frozen=True, kw_only=True)
class Site:
    """How jobs are asked for on one machine. In texts, {nodes}, {cpus} and {gpus} are filled in."""

    name: str
    system: str
    """slurm or pbs."""
    start: tuple[str, ...]
    """The command that starts one process on every node of the job, as words before that process's own."""
    note: str = ""
    """Where the facts are from, and whether anybody has tried them there."""
    interface: str = ""
    """The network interface that the nodes share; empty: the one that leads to the login node."""
    gpus_per_node: int = 0
    """GPUs that a node has; 0: CPUs, unless somebody asks for GPUs."""
    numbered_gpus: bool = False
    """Whether workers get GPUs by their numbers, because NVML does not know them (AMD)."""
    directives: tuple[str, ...] = ()
    """Options of the batch system that every job has, as they stand after #SBATCH or #PBS."""
    cpu_directives: tuple[str, ...] = ()
    """Those of jobs on CPUs alone."""
    gpu_directives: tuple[str, ...] = ()
    """Those of jobs on GPUs alone."""
    setup: tuple[str, ...] = ()
    """Lines of shell before our command: modules to load, variables to set."""

    def __post_init__(self) -> None:
        require_one_of("system", self.system, SYSTEMS)
        require_integer("gpus_per_node", self.gpus_per_node, low=0, high=1024)
        texts = [*self.start, *self.directives, *self.cpu_directives, *self.gpu_directives, *self.setup]
        for text in [*texts, self.note, self.name]:
            if not isinstance(text, str) or not text.isprintable():
                raise SettingsError(f"{text!r} is no text of one line; give a text for each line.")
        # Not of `setup`: these are lines of shell, in which braces are its own.
        filled_in = " ".join([*self.start, *self.directives, *self.cpu_directives, *self.gpu_directives])
        if unknown := set(re.findall(r"\{(\w+)\}", filled_in)) - set(FILLED_IN):
            raise SettingsError(f"{{{min(unknown)}}} is not known; {{nodes}}, {{cpus}} and {{gpus}} are.")
        if not self.start:
            raise SettingsError("start is empty; give the command that starts one process on every node.")


def filled(text: str, *, nodes: int, cpus: int, gpus: int) -> str:
    """A text of a site with the numbers of a job in it."""
    numbers = {"nodes": nodes, "cpus": cpus, "gpus": gpus}
    return re.sub(r"\{(\w+)\}", lambda found: str(numbers[found[1]]), text)


def known_sites() -> list[str]:
    """Names of the sites that come with the package."""
    return sorted(path.stem for path in SITES.glob("*.toml"))


def read_site(name: str | Path) -> Site:
    """The site of this name, or the one that a TOML file describes.

    SettingsError for a name that is not known, and for a file that is missing or no description of a site.
    """
    if not isinstance(name, (str, Path)):
        raise SettingsError(
            f"site is {name!r}; it must be the name of a machine, or the path of a TOML file."
        )
    path = Path(os.path.expanduser(name))  # Path.expanduser fails for a person who is not known
    if str(name) in known_sites():
        path = SITES / f"{name}.toml"
    elif path.suffix != ".toml":
        raise SettingsError(
            f"site is {str(name)!r}; known are {', '.join(known_sites())}. Another machine is described by a "
            f"file of yours, such as {SITES / 'slurm.toml'}: give its path, ending in .toml."
        )
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"site {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SettingsError(f"site {path} is no TOML: {error}.") from error
    return _site(path, values)


def _site(path: Path, values: Mapping[str, Any]) -> Site:
    try:
        site: Site = record_of(Site, {"name": path.stem, **values})
    except (TypeError, SettingsError) as error:
        raise SettingsError(
            f"site {path} is not right: {error} Its values are: {', '.join(Site.__annotations__)}."
        ) from error
    return site
