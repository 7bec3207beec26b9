"""Which datasets of somebody's file make a task: what goes into the network, and what is to come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_number
from rehearsal_kit.base.plain_values import make_plain


@dataclass(frozen=True, kw_only=True)
class TaskFields:
    """The datasets of a file, HDF5 or .npz, whose first axes are the samples of a task.

    A field has the name of its dataset, the last part of the path; `targets` may give other names, which are
    those of the network's outputs. Raises a SettingsError for anything but paths, or two fields of one name.
    """

    inputs: str
    """Path of the dataset that goes into the network."""
    targets: Mapping[str, str] | Sequence[str] | str
    """Paths of the datasets that the network is to predict, or these by the names of its outputs."""
    group: str | None = None
    """Name of a target with integers (sample,) by which the buffer keeps quotas, such as the label; None:
    the task."""
    test: str | float = 0.2
    """Path of a dataset (sample,), true for samples that are never trained on; or the share of such samples,
    which are then drawn at random, the same ones whenever the file is opened."""

    def __post_init__(self) -> None:
        make_plain(self)
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, Mapping):
            targets = {_last(path): path for path in targets} if isinstance(targets, list | tuple) else {}
        object.__setattr__(self, "targets", dict(targets))
        for label, path in (("inputs", self.inputs), *targets.items()):
            if not isinstance(path, str) or not path.strip("/"):
                raise SettingsError(f"{label} is {path!r}; it must be the path of a dataset.")
        names = self.names
        if not targets or len(names) != len(targets) + 1 or not all(map(str.isidentifier, names)):
            raise SettingsError(
                f"inputs are {self.inputs!r} and targets {self.targets!r}; there must be at least one "
                "target, and each field needs a name of its own, a word: give targets as {name: path}."
            )
        if self.group is not None and self.group not in targets:
            raise SettingsError(
                f"group is {self.group!r}; it must be one of the targets {', '.join(targets)}."
            )
        if not isinstance(self.test, str):
            require_number("test", self.test, low=0.001, high=0.999)

    @property
    def names(self) -> dict[str, str]:
        """The paths of all fields by their names, the inputs first."""
        assert isinstance(self.targets, Mapping)  # noqa: S101 - made so above
        return {_last(self.inputs): self.inputs, **self.targets}


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
