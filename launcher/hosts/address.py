"""Addresses by which other hosts reach this one."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

# Any port will do: connecting a datagram socket sends nothing, it only asks the kernel for its route.
_DISCARD = 9


def towards(host: str) -> str | None:
    """The address with which this machine reaches `host` (a name or an address), None if it has no way.

    The kernel's own choice of interface, so never that of a bridge which does not lead there. IPv4 where
    there is a choice, for not every program that is given the address knows IPv6.
    """
    try:
        found = socket.getaddrinfo(host, _DISCARD, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, _, _, target in sorted(found, key=lambda each: each[0] != socket.AF_INET):
        with suppress(OSError), socket.socket(family, kind) as probe:
            probe.connect(target)
            return probe.getsockname()[0]
    return None


def is_loopback(address: str) -> bool:
    """Whether only this machine itself is reached by it."""
    return address.startswith("127.") or address == "::1"


def own(hosts: Iterable[str]) -> tuple[str, ...]:
    """This machine's addresses towards `hosts`, each once, those for this machine alone last."""
    found = {address: None for host in hosts if (address := towards(host)) is not None}
    return tuple(sorted(found, key=is_loopback))


def choose(peers: Iterable[str]) -> str:
    """The address of this machine under which `peers` (addresses of all other hosts) can meet it."""
    outside = [address for address in own(peers) if not is_loopback(address)]
    return outside[0] if outside else "127.0.0.1"
