"""One driver at a time: a store is locked while it is written.

On a local or shared file system the operating system holds the lock (flock) and lets go of it when the driver
dies, however it dies. An object store has no such thing: there the lock is an object that must not exist yet when
it is written, and that its owner renews; one that was not renewed for a while belongs to nobody.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hepdask.errors import StoreError
from hepdask.folders import is_local

LOCK = "lock.json"
RENEWED_EVERY = 20.0  # seconds
STALE_AFTER = 90.0  # seconds without renewal


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a store for the block.

    Parameters
    ----------
    path : Path
        Folder of the store, which exists.

    Raises
    ------
    StoreError
        Another driver holds it; the message says which.
    """
    with _file_lock(path / LOCK) if is_local(path) else _object_lock(path / LOCK):
        yield


@contextmanager
def _file_lock(file: Path) -> Iterator[None]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(file, os.pread(descriptor, 1 << 12, 0)) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
        yield
        os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def _object_lock(file: Path) -> Iterator[None]:
    mine = _owner() | {"id": uuid.uuid4().hex}
    _remove_stale(file)
    try:
        _create(file, mine)
    except FileExistsError:
        raise _refusal(file, file.read_bytes()) from None
    done = threading.Event()
    keeper = threading.Thread(target=_renew, args=(file, mine, done), name="store lock", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        with suppress(FileNotFoundError):
            if json.loads(file.read_bytes()).get("id") == mine["id"]:
                file.unlink()


def _create(file: Any, content: dict[str, Any]) -> None:
    """Write an object that must not exist yet: of two that try at once, one fails."""
    file.fs.pipe_file(file.path, json.dumps(content).encode(), mode="create")


def _remove_stale(file: Path) -> None:
    with suppress(FileNotFoundError):
        found = json.loads(file.read_bytes())
        dead = found["host"] == socket.gethostname() and not _lives(found["pid"])
        if dead or time.time() - found["renewed"] > STALE_AFTER:
            file.unlink()


def _renew(file: Path, mine: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(RENEWED_EVERY):
        with suppress(OSError):  # the next try may succeed; STALE_AFTER leaves room for several
            file.write_bytes(json.dumps(mine | {"renewed": time.time()}).encode())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _owner() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": getpass.getuser(),
        "renewed": time.time(),
    }


def _refusal(file: Path, content: bytes) -> StoreError:
    try:
        owner = json.loads(content)
        who = f"process {owner['pid']} of {owner['user']} on {owner['host']}"
    except (ValueError, KeyError):
        who = "another process"
    return StoreError(f"{file.parent}: {who} is writing this store; wait until it ends, or stop it")
