"""Somebody who wants into a cluster of ours: in this process, or as a program that runs as another user."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed.comm.core import connect
from distributed.protocol.pickle import dumps
from distributed.security import Security

from rehearsal_kit.base.processes import listeners

NOBODY = 65534
TIMEOUT_S = 2


def listening(processes: Iterable[psutil.Process]) -> set[tuple[str, int]]:
    """(address, port) of everything on which these processes listen."""
    return {(listener.address, listener.port) for listener in listeners(processes)}


def disguises() -> dict[str, tuple[str, dict[str, Any]]]:
    """Protocol and arguments of those who have no key of the cluster."""
    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.check_hostname, nameless.verify_mode = False, ssl.CERT_NONE
    stranger = Security.temporary().get_connection_args("client")
    stranger["ssl_context"].verify_mode = ssl.CERT_NONE  # it does not mind whom it talks to
    return {
        "plain tcp": ("tcp", {}),
        "no certificate": ("tls", {"ssl_context": nameless, "require_encryption": True}),
        "another certificate": ("tls", stranger),
    }


def break_in(ports: Iterable[tuple[str, int]], marker: Path, who: Mapping[str, Any]) -> dict[str, str]:
    """Ask at every port, in every disguise, to make a folder at `marker`; what came of each attempt."""

    async def everywhere() -> dict[str, str]:
        attempts = {
            f"{name} at {host}:{port} as {operation}": _order(
                f"{protocol}://{host}:{port}", operation, marker, arguments
            )
            for host, port in ports
            for name, (protocol, arguments) in who.items()
            for operation in ("run", "run_function")  # of workers and nannies; of the scheduler
        }
        return dict(zip(attempts, await asyncio.gather(*attempts.values()), strict=True))

    return asyncio.run(everywhere())


async def _order(address: str, operation: str, marker: Path, arguments: Mapping[str, Any]) -> str:
    order = {"op": operation, "function": dumps(os.mkdir), "args": dumps((str(marker),))}
    try:
        comm = await connect(address, timeout=TIMEOUT_S, **arguments)
    except OSError as error:
        return f"refused: {error}"
    try:
        await comm.write(order)
        return f"answered: {await asyncio.wait_for(comm.read(), TIMEOUT_S)}"
    except (OSError, TimeoutError) as error:
        return f"refused: {error!r}"
    finally:
        comm.abort()


def web_ports(ports: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those that answer HTTP. To speak Dask's protocol to them would have us wait for a reply of exabytes."""
    found = set()
    for host, port in ports:
        with contextlib.suppress(OSError):
            pages(f"http://{host}:{port}", ["/"])
            found.add((host, port))
    return found


def pages(address: str, paths: Iterable[str]) -> dict[str, int]:
    """The status with which a web server answers each path."""
    found = {}
    for path in paths:
        try:
            found[path] = urllib.request.urlopen(f"{address}{path}", timeout=5).status
        except urllib.error.HTTPError as error:
            found[path] = error.code
            error.close()
    return found


def spill(port: tuple[str, int], garbage: bytes) -> None:
    """Send bytes that mean nothing, and leave."""
    with socket.create_connection(port, TIMEOUT_S) as connection:
        connection.sendall(garbage)


def as_nobody(action: str, **arguments: Any) -> Any:
    """What another user gets out of one of the actions below; skips where we cannot become one."""
    if os.getuid() != 0:
        pytest.skip("only root can run a program as another user")
    done = subprocess.run(
        [sys.executable, __file__, action, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _read(paths: list[str]) -> dict[str, str]:
    found = {}
    for path in paths:
        try:
            found[path] = str(os.listdir(path)) if os.path.isdir(path) else Path(path).read_text()
        except OSError as error:
            found[path] = type(error).__name__
    return found


def _break_in(ports: list[list[Any]], marker: str) -> dict[str, str]:
    return break_in([(host, port) for host, port in ports], Path(marker), disguises())


def main() -> None:
    """Everything is imported, and has run once, before this process gives up what it may read."""
    break_in([("127.0.0.1", 1)], Path("/nowhere"), disguises())
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    actions = {"read": _read, "break_in": _break_in, "pages": pages}
    print(json.dumps(actions[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
