"""Every error of the toolkit; catch wide or narrow.

RehearsalKitError
├── SettingsError     a setting or a command outside what is allowed (also a ValueError)
├── ScanError         a file that cannot be read as a scan (also a ValueError)
│   └── NotYetError        one that is not there, or not whole, but may be once its writer has finished
├── DatasetError      a data set that is missing or damaged (also a ValueError)
├── TaskError         tensors that cannot be read as a task, or do not fit the run (also a ValueError)
│   └── AlreadyTaskError   a file that is a task of the run already
├── ExportError       a network that cannot be written as ONNX, or not computed the same from there
├── SnapshotError     a snapshot of a buffer that is broken or incomplete (also a ValueError)
├── CheckpointError   a checkpoint that is broken, incomplete or of another run (also a ValueError)
├── ReplayError       a recorded run that does not come about again
├── RunFolderError    a run folder that exists already, is not private, or is not one
├── ClusterError      a cluster that cannot be started, reached or trusted
│   └── ClusterGoneError   a cluster that has ended, or does not answer any more
├── SessionError      a call that the state of the session does not allow
│   └── LeaseError    a run folder that somebody else writes to
└── RankError         a rank failed while it trained
    └── OtherRankError     one could not go on because another had died, failed or was given up
"""

from __future__ import annotations

import traceback


class RehearsalKitError(Exception):
    """Base of all errors that the toolkit raises on purpose."""


class SettingsError(RehearsalKitError, ValueError):
    """A setting or command outside what is allowed."""


class ScanError(RehearsalKitError, ValueError):
    """A file that cannot be read as a scan; names the file and, where known, the dataset."""


class NotYetError(ScanError):
    """A file that may be good later: missing, empty, cut short, or still open in the program that writes it.

    held: whether it is seen that a writer is at work.
    """

    def __init__(self, message: str, *, held: bool = False) -> None:
        super().__init__(message)
        self.held = held


class DatasetError(RehearsalKitError, ValueError):
    """A data set that is missing or damaged; names the file or the folder."""


class TaskError(RehearsalKitError, ValueError):
    """Tensors that cannot be read as a task, or that do not fit the network or the tasks before."""


class AlreadyTaskError(TaskError):
    """A file that arrives a second time while it is a task of the run."""


class ExportError(RehearsalKitError):
    """A network that cannot be written as ONNX, or that onnxruntime does not compute as torch does."""


class SnapshotError(RehearsalKitError, ValueError):
    """A snapshot of a buffer that is broken, incomplete or not of one moment."""


class CheckpointError(RehearsalKitError, ValueError):
    """A checkpoint that is broken, incomplete, or not of this run."""


class ReplayError(RehearsalKitError):
    """What was recorded of a run cannot come about again: code, data or settings have changed."""


class RunFolderError(RehearsalKitError):
    """A run folder that exists already, is readable by others, or is not a run folder."""


class ClusterError(RehearsalKitError):
    """A cluster that cannot be started, reached or trusted."""


class ClusterGoneError(ClusterError):
    """A cluster that has ended, or does not answer any more."""


class SessionError(RehearsalKitError):
    """A call that the present state of the session does not allow."""


class LeaseError(SessionError):
    """A run folder that somebody else writes to, or may write to; says who and where."""


class RankError(RehearsalKitError):
    """A rank failed; carries the first error of the first rank that failed."""


class OtherRankError(RankError):
    """A rank could not go on because of another one; what that one says is the reason."""


def said(error: BaseException) -> str:
    """What an error says; where it is not one of ours, which say enough, its type comes first."""
    return str(error) if isinstance(error, RehearsalKitError) else f"{type(error).__name__}: {error}"


def said_where(error: BaseException) -> str:
    """The same, and the place where one that is not ours was raised: whoever wrote that code looks there."""
    trace = traceback.extract_tb(error.__traceback__)
    if isinstance(error, RehearsalKitError) or not trace:
        return said(error)
    return f"{said(error)} ({trace[-1].name}, {trace[-1].filename}:{trace[-1].lineno})"


def said_before(error: Exception, *, rank: int, step: int) -> str:
    """What an error says, on which rank, and before which step."""
    return f"{said(error)} (rank {rank}, before step {step})"
