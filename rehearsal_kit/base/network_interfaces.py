"""The network interfaces of this machine, and who listens on them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from rehearsal_kit.base.child_processes import variables_set
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.processes import Listener, listeners


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a cluster is bound to."""

    name: str
    """Name as the system calls it: lo, eth0, ib0."""
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


def interface_of(host: str) -> Interface:
    """The interface of this machine that has this address; ClusterError lists those there are."""
    there = {
        each.address.partition("%")[0]: name
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
    }
    if host not in there:
        known = ", ".join(f"{address} ({name})" for address, name in there.items())
        raise ClusterError(
            f"no interface of {socket.gethostname()} has the address {host}, so the ranks could not be bound "
            f"to it; it has: {known or 'none'}. Start `dask worker` with --host and one of these."
        )
    return Interface(name=there[host], address=host)


def interface_towards(hosts: Sequence[str]) -> Interface:
    """The interface by which this machine reaches the first of these addresses that it knows a way to.

    ClusterError lists those there are. Nothing is sent.
    """
    for host in hosts:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.connect((host, 9))
            return interface_of(asked.getsockname()[0])
    there = ", ".join(f"{each.name} ({each.address})" for each in interfaces()) or "none"
    raise ClusterError(
        f"{socket.gethostname()} knows no way to {', '.join(hosts) or 'any address'}; its interfaces are: "
        f"{there}. Name the one that all nodes and the login node share."
    )


def socket_variables(interface: Interface) -> dict[str, str]:
    """The variables that have gloo and NCCL listen on this interface and no other."""
    return {"GLOO_SOCKET_IFNAME": interface.name, "NCCL_SOCKET_IFNAME": f"={interface.name}"}


@contextlib.contextmanager
def bound_to(address: str) -> Iterator[None]:
    """Have the process groups that are made meanwhile listen on the interface of this address.

    Whatever the environment of a site says: gloo speaks plain text and asks for no password. ClusterError
    if this process has begun to listen elsewhere all the same; ClusterError, too, if the address is not ours.
    """
    interface, me = interface_of(address), [psutil.Process()]
    listening = listeners(me)
    with variables_set(socket_variables(interface)):  # gloo and NCCL read them when a group is made
        yield
    if beyond := strays(listeners(me) - listening, interface):
        raise ClusterError(
            f"ranks must listen on {interface.name} ({address}) only, but this one also does elsewhere: "
            f"{', '.join(beyond)}; whoever reaches that could join the run."
        )


def strays(found: Iterable[Listener], interface: Interface) -> list[str]:
    """Which of these take connections on another interface than this one and loopback, in words."""
    own = {each.address.partition("%")[0] for each in psutil.net_if_addrs().get(interface.name, [])}
    return [
        f"process {each.process} on {each.address} port {each.port}"
        for each in sorted(found, key=lambda each: (each.process, each.port))
        if each.address.partition("%")[0] not in own and not is_loopback(_plain(each.address))
    ]


def _plain(address: str) -> str:
    """An IPv4 address that is written as one of IPv6, in its own writing."""
    mapped = getattr(ipaddress.ip_address(address.partition("%")[0]), "ipv4_mapped", None)
    return str(mapped or address)
