"""The network interfaces of this machine, and who listens on them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from rehearsal_kit.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a cluster is bound to."""

    name: str
    """As the system calls it: lo, eth0, ib0."""
    address: str
    """Its first IPv4 address."""


def interface_named(name: str | None) -> Interface:
    """The interface of this name, or for None the loopback; ClusterError lists those there are."""
    known = interfaces()
    for interface in known:
        if interface.name == name or (name is None and is_loopback(interface.address)):
            return interface
    there = ", ".join(f"{interface.name} ({interface.address})" for interface in known) or "none"
    raise ClusterError(
        f"interface {name or 'loopback'!r} is not there or has no IPv4 address; this machine has: {there}."
    )


def interfaces() -> list[Interface]:
    """Every interface of this machine that has an IPv4 address."""
    return [
        Interface(name=name, address=own[0])
        for name, addresses in psutil.net_if_addrs().items()
        if (own := [each.address for each in addresses if each.family == socket.AF_INET])
    ]


def is_loopback(host: str) -> bool:
    """Whether this host name or address can only mean this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def wildcard_listeners(processes: Iterable[psutil.Process]) -> list[str]:
    """Which of these processes listen on every interface, in words."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it may end while we look
            found += [
                f"process {process.pid} on port {connection.laddr.port}"
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
                and ipaddress.ip_address(connection.laddr.ip).is_unspecified
            ]
    return found
