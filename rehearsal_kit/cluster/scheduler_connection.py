"""The connection of a kernel to a scheduler: only to one that can be trusted, and closed without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.comm.core import CommClosedError

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError
from rehearsal_kit.base.network_interfaces import is_loopback
from rehearsal_kit.cluster.key_files import read_trusted, security_of, untimely

WRITING_S = 3.0
"""How long a scheduler file may be cut short before it is none."""
LOOK_S = 0.05


class Connection(Client):
    """A client that leaves no thread and no file open where it cannot connect, as Dask's own does.

    That its scheduler has ended is told by the session, in words, without Dask's call stack beside them.
    """

    def __init__(self, address: str, **options: Any) -> None:
        # The same filter is added once, however many connections there are.
        logging.getLogger("distributed.batched").addFilter(_is_not_of_an_ended_scheduler)
        try:
            super().__init__(address, **options)  # type: ignore[no-untyped-call] # Dask's has no types
        except BaseException:
            with contextlib.suppress(AttributeError):  # not even a loop was made
                self._loop_runner.stop()
            raise


def open_connection(address: str, key: Path | None, *, timeout_s: float) -> Client:
    """A connection to this scheduler, with this key if it speaks TLS; ClusterGoneError if it is not there."""
    security = None if key is None else security_of(key)
    try:
        return Connection(address, security=security, set_as_default=False, timeout=f"{timeout_s}s")
    except OSError as error:
        hint = "" if key is None else untimely(key, datetime.now(UTC)) or "or it has another key"
        raise ClusterGoneError(
            f"the scheduler at {address} does not answer{hint and ', '}{hint}: {error}"
        ) from error


def scheduler_in(file: Path) -> str:
    """The address that a scheduler file says; ClusterError for one that others could write to, or is none.

    One that is not whole yet is waited for: a scheduler that begins opens it before it writes.
    """
    deadline = time.monotonic() + WRITING_S
    text = read_trusted(file)
    while not _is_whole(text) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        text = read_trusted(file)
    try:
        address = str(json.loads(text)["address"])
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"{file} is no scheduler file: {error!r}. `dask scheduler --scheduler-file {file}` writes one."
        ) from error
    if "://" not in address:
        raise ClusterError(f"{file} has the address {address!r}; it must be like tls://10.1.2.3:4567.")
    return address


def _is_whole(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def require_encrypted(address: str, *, key: Path | None, insecure: bool) -> None:
    """ClusterError unless the scheduler at this address is reached by TLS with a key, or on loopback.

    insecure: somebody has accepted the risk.
    """
    protocol, _, place = address.partition("://")
    if protocol == "tls":
        if key is None:
            raise ClusterError(f"the scheduler at {address} speaks TLS; give key=, the key file it has.")
    elif key is not None:
        raise ClusterError(
            f"a key was given, but the scheduler at {address} speaks no TLS: start it with --protocol tls "
            "and the three --tls- options, see help(rehearsal_kit.connect)."
        )
    elif not is_loopback(place.rpartition(":")[0]) and not insecure:
        raise ClusterError(
            f"the scheduler at {address} is on another machine or open to others, and speaks no TLS: whoever "
            "reaches it runs programs as you. Allowed are tls:// with key=, and loopback; start it with TLS "
            "(help(rehearsal_kit.connect) has the commands), or accept the risk with insecure=True."
        )


@contextlib.contextmanager
def closed_quietly() -> Iterator[None]:
    """Without a traceback from Dask where it was reconnecting, which ends when somebody disconnects."""
    logger = logging.getLogger("distributed.client")
    logger.addFilter(_is_not_cancelled)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_cancelled)


def _is_not_cancelled(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, asyncio.CancelledError)


def _is_not_of_an_ended_scheduler(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    ended = kind is not None and issubclass(kind, CommClosedError)
    return not (ended and "Client->Scheduler" in record.getMessage())
