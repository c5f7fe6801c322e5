"""Connection files: how those who may find their way into a cluster that stays up.

A file that `load_cluster` takes, with address and certificate. One is written on request, where the user says; another
one lies in a private folder of the user, so that ``--cluster ADDRESS`` is enough for the same person.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from hepdask.clusters.tls import make_folder, write_private
from hepdask.errors import ClusterError
from hepdask.user_environment import is_private

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<place>.+)@(?P<host>[^@]+)@(?P<pid>\d+)\.json")


def document(address: str, certificate: str | None) -> str:
    """Give what a connection file holds."""
    facts = {"kind": "attached", "address": address}
    return json.dumps(facts | ({"certificate": certificate} if certificate else {}), indent=1)


def write(path: Path, address: str, certificate: str | None) -> None:
    """Write the file that a user asked for; only its owner can read it.

    Raises
    ------
    ClusterError
        It cannot be written.
    """
    try:
        write_private(path, document(address, certificate))
    except OSError as error:
        raise ClusterError(
            f"{path}: the connection file cannot be written ({error.strerror or error}); give --connection another path"
        ) from None


@contextmanager
def announced(address: str, certificate: str | None) -> Iterator[None]:
    """Let the same user find the way by the address alone, for as long as the block lasts.

    Files of clusters that are gone are removed. Where no private folder can be had, a warning says so.
    """
    if not certificate:
        yield
        return
    path = None
    for folder in _folders():
        with suppress(OSError):
            make_folder(folder)
            if is_private(folder):
                _tidy(folder)
                path = folder / f"{_place(address)}@{socket.gethostname()}@{os.getpid()}.json"
                write_private(path, document(address, certificate))
                break
    else:
        path = None
        logger.warning(
            "no private folder can be written (HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR), so the address is "
            "not enough to attach from elsewhere: use hepdask cluster start --connection FILE"
        )
    try:
        yield
    finally:
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def find(address: str) -> Path | None:
    """Give this user's connection file of a running cluster; None where there is none."""
    here = socket.gethostname()
    found = []
    for folder in _folders():
        if not is_private(folder):
            continue
        _tidy(folder)
        for path in folder.glob(f"{_place(address)}@*.json"):
            match = _NAME.fullmatch(path.name)
            if match and (match["host"] == here or not _is_loopback(address)):
                found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def folders() -> str:
    """Name the folders that `find` looks into."""
    return " and ".join(str(folder) for folder in _folders())


def _folders() -> list[Path]:
    """Give where these files may be, the first one first: home is seen from all machines of a site."""
    found = []
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):
        found.append(Path(state) / "hepdask" / "clusters")
    else:
        with suppress(RuntimeError):  # neither HOME nor an entry in passwd
            found.append(Path.home() / ".local" / "state" / "hepdask" / "clusters")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        found.append(Path(runtime) / "hepdask")
    return [*found, Path(tempfile.gettempdir()) / f"hepdask-{os.getuid()}"]


def _tidy(folder: Path) -> None:
    """Remove the files of clusters of this machine whose process is gone."""
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is None or match["host"] != socket.gethostname():
            continue
        with suppress(OSError):
            try:  # a process that began after the file was written is another one with the same number
                gone = psutil.Process(int(match["pid"])).create_time() > path.stat().st_mtime + 1
            except psutil.NoSuchProcess:
                gone = True
            except psutil.Error:
                gone = False
            if gone:
                path.unlink()


def _place(address: str) -> str:
    """Give host and port in a form that is fit for a file's name, however the host is written."""
    host, _, port = address.partition("://")[2].rpartition(":")
    with suppress(OSError):
        host = socket.gethostbyname(host.strip("[]"))
    return re.sub(r"[^\w.-]", "_", f"{host}_{port}")


def _is_loopback(address: str) -> bool:
    return _place(address).startswith(("127.", "__1_"))
