"""Small sums among ranks that are all on one host, over sockets that never leave it.

What Horovod does for an allreduce of a network's gradients takes one to three milliseconds on cores that compute: its
threads must wake each other in turns, on all ranks, to agree on what comes next. Ranks that take the same steps in
the same order need no agreement. Rank 0 gathers, adds in the order of the ranks, and sends the sum to all: bit for bit
the same everywhere.

The sockets have names in Linux' abstract namespace: no file and no port, gone with the processes, reachable only from
this host. A rank must belong to the same user and know a secret that came by Horovod.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

#: Larger arrays are better off in a ring.
MOST_BYTES = 2**20

#: Seconds for all ranks to connect; they are all there and on this host.
_CONNECT = 10.0

#: Seconds between two looks at a rank that is waited for.
_LOOK = 1.0

_SECRET_BYTES, _RANK_BYTES = 16, 4
_CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


class NeighbourLost(ConnectionError):
    """Another rank of this host is gone, or answers no more."""


class Neighbours:
    """Connections of this rank: of rank 0 to all others, of the others to rank 0.

    Parameters
    ----------
    rank : int
        Of this process.
    sockets : list of socket
        In rank order.
    """

    def __init__(self, rank: int, sockets: list[socket.socket]) -> None:
        self._rank, self._sockets = rank, sockets
        # as long as Horovod waits for a host that is silent
        self._patience = float(os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", "30"))
        for one in sockets:
            one.settimeout(_LOOK)

    def sum(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of an array of one shape and type over all ranks; every rank calls it.

        Raises
        ------
        NeighbourLost
            A rank is gone.
        """
        total = np.array(array, order="C")  # a copy
        if not total.size:
            return total
        if self._rank > 0:
            self._send(self._sockets[0], total)
            self._receive(self._sockets[0], total)
            return total
        other = np.empty_like(total)
        for one in self._sockets:
            self._receive(one, other)
            total += other
        for one in self._sockets:
            self._send(one, total)
        return total

    def _send(self, to: socket.socket, array: NDArray[Any]) -> None:
        self._move(to, to.send, array.data.cast("B"))

    def _receive(self, source: socket.socket, array: NDArray[Any]) -> None:
        self._move(source, source.recv_into, array.data.cast("B"))

    def _move(self, via: socket.socket, move: Callable[[memoryview], int], rest: memoryview) -> None:
        """Send or receive all of it; the other rank may take its time, but it must live and run."""
        stopped = 0.0
        while rest:
            try:
                moved = move(rest)
            except TimeoutError:
                stopped = stopped + _LOOK if _is_stopped(via) else 0.0
                if stopped >= self._patience:
                    raise NeighbourLost(f"a rank of this host has been stopped for {stopped:.0f} s") from None
                continue
            except OSError as error:
                raise NeighbourLost(f"a rank of this host is gone ({error})") from error
            if not moved:
                raise NeighbourLost("a rank of this host is gone")
            rest = rest[moved:]


def meet(hvd: Any) -> Neighbours | None:
    """Connect the ranks; every rank calls it.

    Parameters
    ----------
    hvd : module
        ``horovod.tensorflow``, initialised.

    Returns
    -------
    Neighbours or None
        None on all ranks where they are not all on one host, or cannot reach each other there.
    """
    rank, size = hvd.rank(), hvd.size()
    if hvd.local_size() != size:
        return None
    with socket.socket(socket.AF_UNIX) as listener:
        # the name can be seen by everyone on the host, the secret cannot
        invitation = (f"\0hepdask-{secrets.token_hex(8)}", secrets.token_bytes(_SECRET_BYTES))
        found: list[socket.socket] = []
        if rank == 0:
            listener.bind(invitation[0])
            listener.listen(size)
        invitation = hvd.broadcast_object(invitation, root_rank=0)
        with contextlib.suppress(OSError):
            found = _accept(listener, size, invitation[1]) if rank == 0 else [_connect(rank, *invitation)]
    if all(hvd.allgather_object(bool(found))):
        return Neighbours(rank, found)
    for one in found:
        one.close()
    return None


def _accept(listener: socket.socket, size: int, secret: bytes) -> list[socket.socket]:
    """Let the other ranks in, and nobody else."""
    found: dict[int, socket.socket] = {}
    give_up = time.monotonic() + _CONNECT
    while len(found) < size - 1:
        listener.settimeout(max(0.0, give_up - time.monotonic()))
        guest = listener.accept()[0]
        guest.settimeout(_LOOK)
        said = _greeting(guest)
        rank = int.from_bytes(said[len(secret) :], "big")
        if hmac.compare_digest(said[: len(secret)], secret) and 0 < rank < size and _is_me(guest):
            found[rank] = guest
        else:
            guest.close()
    return [found[rank] for rank in sorted(found)]


def _connect(rank: int, name: str, secret: bytes) -> socket.socket:
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(_CONNECT)
    host.connect(name)
    host.sendall(secret + rank.to_bytes(_RANK_BYTES, "big"))
    return host


def _greeting(guest: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return guest.recv(_SECRET_BYTES + _RANK_BYTES, socket.MSG_WAITALL)
    return b""


def _is_me(guest: socket.socket) -> bool:
    """Whether the other end belongs to the same user."""
    return _other_end(guest)[1] == os.getuid()


def _is_stopped(via: socket.socket) -> bool:
    """Whether the process at the other end was stopped by a signal, as far as this one may see."""
    try:
        return bool(psutil.Process(_other_end(via)[0]).status() == psutil.STATUS_STOPPED)
    except (psutil.Error, ValueError):
        return False


def _other_end(of: socket.socket) -> tuple[int, int]:
    """Return process and user of the other end."""
    process, user, _ = _CREDENTIALS.unpack(
        of.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return process, user
