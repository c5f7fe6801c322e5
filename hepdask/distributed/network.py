"""Network interfaces of this host: which one has an address, and which address one has."""

from __future__ import annotations

import contextlib
import socket

import psutil

from hepdask.distributed.errors import CannotListen


def interface_of(host: str) -> str | None:
    """Return the interface that has an address of this host, None if it cannot be told."""
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return name
    return None


def address_of(interface: str) -> str:
    """Return the IPv4 address of an interface of this host.

    Raises
    ------
    CannotListen
        If there is no such interface, or it has no such address.
    """
    found = {
        name: address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
    }
    if interface not in found:
        raise CannotListen(
            f"host {socket.gethostname()} has no network interface {interface} with an IPv4 address; "
            f"it has: {', '.join(sorted(found))}"
        )
    return found[interface]
