"""One owner at a time for whatever is written: a store, and the output of a run.

On a local or shared file system the operating system holds the lock (flock) and lets go of it when the owner dies,
however that dies. Where there is no such thing (an object store, a file system mounted without locks) the lock is a
file that must not exist yet when it is written, and that its owner renews; one that was not renewed for a while
belongs to nobody.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hepdask.errors import HepdaskError
from hepdask.files.atomic import renamed_to
from hepdask.files.folders import is_local
from hepdask.files.outputs import in_words, require_folder, writing

logger = logging.getLogger(__name__)

LOCK = "lock.json"

#: The lock where the file system has none: another name, since trying the first leaves a file.
RENEWED_LOCK = "lock.renewed.json"

#: All names that a lock has.
LOCKS = frozenset((LOCK, RENEWED_LOCK))

RENEWED_EVERY = 20.0  # seconds
STALE_AFTER = 90.0  # seconds without renewal
_SETTLED_AFTER = 1.0  # seconds in which two who took over one lock find out


@contextmanager
def locked(folder: Path, doing: str, error: type[HepdaskError] = HepdaskError) -> Iterator[None]:
    """Own a folder for the block.

    Parameters
    ----------
    folder : Path
        It is made where it is missing.
    doing : str
        What is done in it, for others to read: ``"training in this output"``.
    error : type of HepdaskError
        What to raise.

    Raises
    ------
    HepdaskError
        Another process owns it; the message says which, and what it is doing.
    OutputError
        The folder cannot be written.
    """
    with _file_lock(folder, doing, error) if is_local(folder) else _renewed_lock(folder / LOCK, doing, error):
        yield


@contextmanager
def _file_lock(folder: Path, doing: str, error: type[HepdaskError]) -> Iterator[None]:
    file = folder / LOCK
    require_folder(folder)
    with writing(folder):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(file, os.pread(descriptor, 1 << 12, 0), error) from None
        except OSError as refused:
            reason = in_words(refused, file)
            missing = True
        else:
            missing = False
            with writing(file):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_owner(doing)).encode(), 0)
        if missing:
            logger.warning(
                f"{reason}: this file system has no locks; {RENEWED_LOCK} stands for one, renewed while we work"
            )
            with _renewed_lock(folder / RENEWED_LOCK, doing, error):
                yield
            return
        yield
        with suppress(OSError):
            os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def _renewed_lock(file: Path, doing: str, error: type[HepdaskError]) -> Iterator[None]:
    mine = _owner(doing) | {"id": uuid.uuid4().hex}
    with writing(file):
        taken_over = _remove_stale(file)
    try:
        _create(file, mine)
    except FileExistsError:
        raise _refusal(file, _content(file), error) from None
    if taken_over:  # another may have found the same one stale, and removed ours
        time.sleep(_SETTLED_AFTER)
        if _said(file).get("id") != mine["id"]:
            raise _refusal(file, _content(file), error)
    done = threading.Event()
    renewer = threading.Thread(target=_renew, args=(file, mine, done), name="lock", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        with suppress(OSError):
            if _said(file).get("id") == mine["id"]:
                file.unlink()


def _create(file: Any, content: dict[str, Any]) -> None:
    """Write a file that must not exist yet: of two that try at once, one fails with FileExistsError."""
    text = json.dumps(content).encode()
    if not is_local(file):
        file.fs.pipe_file(file.path, text, mode="create")
        return
    try:
        with file.open("xb") as new:
            new.write(text)
    except FileExistsError:
        raise
    except OSError as refused:
        with writing(file):
            raise refused


def _remove_stale(file: Path) -> bool:
    """Remove a lock whose owner is gone; say whether there was one."""
    found = _said(file)
    try:
        dead = found["host"] == socket.gethostname() and not _lives(found["pid"])
        renewed = float(found["renewed"])
    except (KeyError, TypeError, ValueError, OverflowError):  # begun, and not yet whole, or never
        dead, renewed = False, _age(file)
    if not dead and time.time() - renewed <= STALE_AFTER:
        return False
    with suppress(FileNotFoundError):
        file.unlink()
        return True
    return False


def _age(file: Path) -> float:
    """When a file was last written [s since 1970]; now, where nobody says."""
    try:
        return float(file.stat().st_mtime)
    except (OSError, AttributeError, TypeError):
        return time.time()


def _renew(file: Path, mine: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(RENEWED_EVERY):
        with suppress(OSError):  # the next try may succeed; STALE_AFTER leaves room for several
            if _said(file).get("id") == mine["id"]:
                _replace(file, json.dumps(mine | {"renewed": time.time()}).encode())


def _replace(file: Path, content: bytes) -> None:
    if not is_local(file):
        file.write_bytes(content)
        return
    with renamed_to(file) as fresh:  # nobody may read half of it
        fresh.write_bytes(content)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _said(file: Path) -> dict[str, Any]:
    """Read what a lock says of its owner: nothing where it is not there, or not whole."""
    try:
        found = json.loads(_content(file))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _owner(doing: str) -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container a user may have a number only
        user = f"user {os.getuid()}"
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user,
        "doing": doing,
        "renewed": time.time(),
    }


def _refusal(file: Path, content: bytes, error: type[HepdaskError]) -> HepdaskError:
    try:
        owner = json.loads(content)
        who = f"process {owner['pid']} of {owner['user']} on {owner['host']} is {owner['doing']}"
    except (ValueError, KeyError, TypeError):
        who = "another process works here"
    return error(f"{file.parent}: {who}; wait until it ends, or stop it")
