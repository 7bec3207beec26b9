"""Every error of the toolkit; catch wide or narrow.

RehearsalKitError
├── SettingsError     a setting or a command outside what is allowed (also a ValueError)
├── ScanError         a file that cannot be read as a scan (also a ValueError)
├── SnapshotError     a snapshot of a buffer that is broken or incomplete (also a ValueError)
├── RunFolderError    a run folder that exists already, is not private, or is not one
├── ClusterError      a cluster that cannot be started, reached or trusted
├── SessionError      a call that the state of the session does not allow
└── RankError         a rank failed while it trained
"""


class RehearsalKitError(Exception):
    """Base of all errors that the toolkit raises on purpose."""


class SettingsError(RehearsalKitError, ValueError):
    """A setting or command outside what is allowed."""


class ScanError(RehearsalKitError, ValueError):
    """A file that cannot be read as a scan; names the file and, where known, the dataset."""


class SnapshotError(RehearsalKitError, ValueError):
    """A snapshot of a buffer that is broken, incomplete or not of one moment."""


class RunFolderError(RehearsalKitError):
    """A run folder that exists already, is readable by others, or is not a run folder."""


class ClusterError(RehearsalKitError):
    """A cluster that cannot be started, reached or trusted."""


class SessionError(RehearsalKitError):
    """A call that the present state of the session does not allow."""


class RankError(RehearsalKitError):
    """A rank failed; carries the first error of the first rank that failed."""
