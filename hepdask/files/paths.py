"""Local paths as people type them: resolved once, on the driver's side, before anything travels to a worker."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from hepdask.errors import ConfigError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?::[A-Za-z][A-Za-z0-9+.-]*)*://|[^/]*::")
_FILE_PROTOCOL = re.compile(r"^file://(?:localhost(?=/))?")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
# as uproot and coffea have it
_WITH_TREE = re.compile(r"(.+\.root):([^:]+)")


def is_url(address: str) -> bool:
    """Whether an address begins with a protocol, other than that of local files."""
    return bool(_URL.match(address)) and not address.startswith("file://")


def resolved(address: str) -> str:
    """Make a local path absolute; other addresses stay as they are.

    ``~``, ``~user``, ``$NAME`` and ``${NAME}`` are expanded, ``file://`` is taken off, and what is relative begins in
    the working directory. What has been resolved stays as it is.

    Raises
    ------
    ValueError
        A variable is not set, or there is no such user or folder; the message begins with the path.
    """
    if is_url(address):
        return address
    path = _VARIABLE.sub(_value, _FILE_PROTOCOL.sub("", address))
    if path.startswith("~"):
        path = os.path.expanduser(path)
        if path.startswith("~"):
            raise ValueError(
                f"{address!r}: there is no home folder of {path.split('/')[0]}; write the full path"
            )
    if not path or "\0" in path:
        raise ValueError(f"{address!r} is not a path")
    if os.path.isabs(path):
        return _plain(path)
    try:
        here = os.getcwd()
    except OSError:
        raise ValueError(
            f"{address!r}: the working directory was removed; change into another, or write the full path"
        ) from None
    # a working directory such as [run] is no part of the pattern
    is_pattern = glob.has_magic(path) and not os.path.lexists(path)
    return _plain(os.path.join(glob.escape(here) if is_pattern else here, path))


def local_path(path: str | Path) -> Path:
    """Give the absolute path of something on a local file system.

    Raises
    ------
    ConfigError
        It is an address of something else, a variable in it is not set, or there is no such home folder.
    """
    if is_url(str(path)):
        raise ConfigError(f"{path}: not a path on this machine; give one")
    try:
        return Path(resolved(str(path)))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def address(path: str | Path) -> str:
    """Give the absolute form of a path, and any other address as it is.

    Raises
    ------
    ConfigError
        A variable in it is not set, or there is no such home folder.
    """
    try:
        return resolved(str(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _plain(path: str) -> str:
    """Leave out what does not lead anywhere; `..` stays, a link may stand before it."""
    slash = "/" if path.endswith("/") else ""
    return str(Path(path)) + (slash if path.strip("/") else "")


def _value(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if name not in os.environ:
        raise ValueError(f"{found.string!r}: the environment variable {name or '${}'} is not set")
    return os.environ[name]


def split_tree(address: str) -> tuple[str, str | None]:
    """Take off the tree from ``file.root:Tree``; a file that is really called so is left whole."""
    found = _WITH_TREE.fullmatch(address)
    if found is None or (not is_url(address) and os.path.exists(address)):
        return address, None
    return found[1], found[2].strip("/")
