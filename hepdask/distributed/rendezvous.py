"""The meeting place of the ranks: a small HTTP key-value store that Horovod's gloo transport talks to.

Horovod asks for ``http://ADDR:PORT/SCOPE/KEY`` with PUT, GET (404 while the key is missing) and DELETE (this
rank has all it wanted). ADDR comes from an environment variable and goes into the address as it is, so it
can hold a path, and the path a secret: ADDR is ``host:port/secret``, and what the ranks then ask for is
``http://host:port/secret:PORT/SCOPE/KEY``. Whoever does not know the secret is answered 403.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import socketserver
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from hepdask.distributed.errors import CannotListen

HOLD = 1.0  # seconds a GET for a missing key is kept waiting: Horovod would ask 100 times a second
LARGEST_VALUE = 1 << 20  # bytes; gloo's own are a few hundred a rank
REQUEST_TIMEOUT = 10.0  # seconds to send a request, after which the connection is closed


@dataclass(frozen=True)
class Address:
    """Where a rendezvous listens, and the secret that opens it."""

    host: str
    port: int
    secret: str

    def environment(self) -> dict[str, str]:
        """Return the variables by which Horovod finds the rendezvous."""
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{self.host}:{self.port}/{self.secret}",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(self.port),
        }


class Rendezvous:
    """A key-value server in a thread of its own.

    Parameters
    ----------
    host : str
        The one address to listen on.
    port_range : (int, int) or None
        First and last port allowed; the first free one is taken. None leaves the choice to the system.

    Raises
    ------
    CannotListen
        If no port of the range is free.
    OSError
        If the host has no such address.
    """

    def __init__(self, host: str, port_range: tuple[int, int] | None = None) -> None:
        self.store: dict[tuple[str, str], bytes] = {}
        self.changed = threading.Condition()
        self.closed = False
        self._server = _bind(host, port_range)
        self._server.rendezvous = self
        self.address = Address(host, self._server.server_address[1], secrets.token_hex(16))
        self.prefix = f"{self.address.secret}:{self.address.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="rendezvous", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port; calling it again does nothing."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def get(self, scope: str, key: str) -> bytes | None:
        """Return a value, waiting a moment for it if it is not there yet."""
        give_up = time.monotonic() + HOLD
        with self.changed:
            while (scope, key) not in self.store and not self.closed:
                left = give_up - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    break
            return self.store.get((scope, key))

    def put(self, scope: str, key: str, value: bytes) -> None:
        """Set a value and wake those who wait for it."""
        with self.changed:
            self.store[scope, key] = value
            self.changed.notify_all()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128
    rendezvous: Rendezvous


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so the connection ends with it."""

    timeout = REQUEST_TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        if where := self._where():
            value = self.server.rendezvous.get(*where)
            self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        if where := self._where():
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LARGEST_VALUE:
                self._refuse(413)
                return
            value = self.rfile.read(int(length))
            if len(value) == int(length):
                self.server.rendezvous.put(*where, value)
                self._answer(200)

    def do_DELETE(self) -> None:
        # A rank is done with a scope. Values stay until the run ends: they are few, and others may still ask.
        if self._where():
            self._answer(200)

    def _where(self) -> tuple[str, str] | None:
        """Return scope and key, or answer 403 and return None."""
        parts = self.path.split("/")
        if len(parts) == 4 and secrets.compare_digest(
            parts[1].encode(), self.server.rendezvous.prefix.encode()
        ):
            return parts[2], parts[3]
        self._refuse(403)
        return None

    def _refuse(self, status: int) -> None:
        """Answer, then read off what still comes: closing on unread data resets the connection, answer included."""
        self._answer(status)
        self.connection.shutdown(socket.SHUT_WR)
        give_up = time.monotonic() + REQUEST_TIMEOUT
        with contextlib.suppress(OSError):
            while time.monotonic() < give_up and self.connection.recv(1 << 16):
                pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line a request would drown the scheduler's log."""


def _bind(host: str, port_range: tuple[int, int] | None) -> _Server:
    if port_range is None:
        return _Server((host, 0), _Handler)
    first, last = port_range
    for port in range(first, last + 1):
        try:
            return _Server((host, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise CannotListen(
        f"no free port for the rendezvous on {host}: all of {first}–{last} are taken. "
        "Give a wider port_range, or wait for other runs to end",
    )
