"""What this process has read, by server, until somebody asks."""

from __future__ import annotations

import threading
from collections import Counter
from urllib.parse import urlsplit

_bytes: Counter[str] = Counter()
_lock = threading.Lock()


def count(address: str, size: int) -> None:
    """Note that so many bytes of a file were asked for.

    Parameters
    ----------
    address : str
        Where it was read; what is not a URL is the server ``disk``.
    size : int
        Bytes as they are stored, compressed.
    """
    server = urlsplit(address).hostname if "://" in address else None
    with _lock:
        _bytes[server or "disk"] += size


def take() -> dict[str, int]:
    """Give the bytes by server since this was last called, and begin anew: each byte is told of once."""
    with _lock:
        taken = dict(_bytes)
        _bytes.clear()
    return taken
