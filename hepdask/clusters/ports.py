"""Ports that are free on this machine."""

from __future__ import annotations

import socket


def free_port(host: str, port: int) -> int:
    """Give the port where nothing listens on it, 0 (any) otherwise."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return 0
        return port
