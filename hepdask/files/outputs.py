"""Places that are written to: tried before work is done for them, and what the operating system refuses, in words."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hepdask.errors import HepdaskError, OutputError
from hepdask.files.folders import is_local

#: What each errno means for somebody who wants to write; what is not here is told in the system's own words.
_MEANINGS = {
    errno.ENOSPC: "no space is left on this file system; free some, or write somewhere else",
    errno.EDQUOT: "the disk quota is used up; free some space, or write somewhere else",
    errno.EFBIG: "the file is larger than it may be here (ulimit -f, or the file system); raise the limit, or write "
    "somewhere else",
    errno.EROFS: "the file system is read-only; write somewhere else",
    errno.EISDIR: "is a folder, and a file is to be written there; give another name",
    errno.ENAMETOOLONG: "a name in this path is longer than the file system allows; give a shorter one",
    errno.ELOOP: "links in this path lead in a circle; remove one of them",
    errno.EMFILE: "too many files are open in this process; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close some",
    errno.EIO: "the disk reports a fault; look at the system's log, or write somewhere else",
    errno.ESTALE: "the file server has lost this folder; mount it again, then repeat the command",
    errno.ENOTCONN: "the file system is no longer connected; mount it again, then repeat the command",
    errno.EHOSTDOWN: "the file server does not answer; repeat the command when it does",
    errno.ETIMEDOUT: "the file server does not answer; repeat the command when it does",
    errno.ENODEV: "the device is gone; mount it again, or write somewhere else",
    errno.EBUSY: "in use by the system; give another place",
    errno.ENXIO: "not a file that can be written; give another name",
}

#: Bytes that are written on trial: quotas and full disks refuse them.
_TRIAL = 1 << 16


def in_words(error: OSError, path: str | Path | None = None) -> str:
    """Say in a sentence what the operating system refused.

    Parameters
    ----------
    error : OSError
        What it raised; also an error of a library that only quotes the system's number.
    path : str or Path, optional
        What was written or read; default the file that the error names.

    Returns
    -------
    str
        The path, the reason, and what to do.
    """
    place = path if path is not None else error.filename
    number = _number(error)
    named = f"{place}: " if place is not None else ""
    reason = error.strerror or str(error) or type(error).__name__
    if number is None or place is None:
        return named + reason
    if number in (errno.EACCES, errno.EPERM):
        return named + _forbidden(Path(place))
    if number in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
        return named + _in_the_way(Path(place), reason)
    meaning = _MEANINGS.get(number, reason)
    return named + meaning + (_free(Path(place)) if number in (errno.ENOSPC, errno.EDQUOT) else "")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses in the block into an `OutputError` that names the path."""
    try:
        yield
    except HepdaskError:  # some of them are an OSError, too
        raise
    except OSError as error:
        raise OutputError(in_words(error, path)) from error


def require_folder(folder: Path) -> Path:
    """Make a folder and write something in it on trial, so that hours of work are not done for nothing.

    Parameters
    ----------
    folder : Path
        What will be written to. A link to a folder that is not there yet is followed. An object store is left as it
        is: it says what is wrong with the first object.

    Returns
    -------
    Path
        The same folder.

    Raises
    ------
    OutputError
        It cannot be made or written; nothing is left behind but the folder.
    """
    if not is_local(folder):
        return folder
    with writing(folder):
        (Path(os.path.realpath(folder)) if folder.is_symlink() else folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(_TRIAL))
            trial.flush()
    return folder


def _number(error: OSError) -> int | None:
    """Find the system's number; libraries in C often only write it into the text."""
    if error.errno is not None:
        return error.errno
    quoted = re.search(r"errno\s*=?\s*(\d+)", str(error), re.IGNORECASE)
    return int(quoted[1]) if quoted else None


def _forbidden(path: Path) -> str:
    there = _nearest(path)
    owner = "somebody else"
    with suppress(OSError):
        status = there.stat()
        owner = f"{_user(status.st_uid)} ({stat.filemode(status.st_mode)})"
    return (
        f"no permission: {there} belongs to {owner}, and you are {_user(os.geteuid())}; write somewhere else"
    )


def _in_the_way(path: Path, reason: str) -> str:
    there = _nearest(path)
    try:
        there.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _MEANINGS[errno.ELOOP]
    if there.is_symlink() and not there.exists():
        return f"{there} is a link to {os.readlink(there)}, which is not there; create that folder, or remove the link"
    if there.exists() and not there.is_dir():
        return f"{there} is a file, and a folder is needed there; remove it, or write somewhere else"
    if not there.exists() or there != path:
        return f"{reason.lower()}: there is nothing beyond {there}; was it removed in the meantime?"
    return f"{reason.lower()}; remove it, or write somewhere else"


def _nearest(path: Path) -> Path:
    """Find the part of a path that is there, a link to nothing included."""
    for one in (path, *path.parents):
        with suppress(OSError):
            if os.path.lexists(one):
                return one
    return Path()


def _free(path: Path) -> str:
    with suppress(OSError):
        usage = shutil.disk_usage(_nearest(path))
        return f" ({usage.free / 1e6:,.1f} MB of {usage.total / 1e6:,.0f} MB are free)"
    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # in a container a user may have a number only
        return f"user {number}"
