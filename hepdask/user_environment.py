"""A name, a home and a place for caches, for users who have none: containers run as a number that no list knows.

Many libraries end with a KeyError where a user has no name, with a RuntimeError where compiled code can be kept
nowhere, or make a folder that is called ~. What is told to people and what is kept for later must not stop the work.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # what getpass asks for


def settle() -> None:
    """Fill in what is missing in the environment of this process and of those that it starts; nothing where all is."""
    entry = None
    if not (os.environ.get("HOME") and any(os.environ.get(name) for name in _NAMES)):
        with suppress(KeyError):
            entry = pwd.getpwuid(os.getuid())
    if entry is None and not any(os.environ.get(name) for name in _NAMES):
        os.environ["USER"] = str(os.getuid())
    home = os.environ.get("HOME") or (entry.pw_dir if entry else "")
    if not os.path.isdir(home):
        os.environ["HOME"] = home = str(_folder())
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    if not _can_be_made(cache):
        for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
            os.environ.setdefault(name, str(_folder()))


def _can_be_made(folder: str) -> bool:
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK | os.X_OK)


def _folder() -> Path:
    """Give a folder for temporary files that nobody else can put anything into: caches hold code."""
    folder = Path(tempfile.gettempdir()) / f"hepdask-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if is_private(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="hepdask-"))


def is_private(folder: Path) -> bool:
    """Whether a folder is there, is this user's, and nobody else can enter it."""
    try:
        facts = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
