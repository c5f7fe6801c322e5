"""Storage that speaks XRootD: bounds of its client, listing and file states."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import fsspec

from hepdask.config import XRootD
from hepdask.errors import InputError, MissingDependency


def is_xrootd(address: str) -> bool:
    """Whether an address is one of the XRootD protocol."""
    return address.startswith(("root://", "xroot://"))


def set_bounds(bounds: XRootD) -> None:
    """Let the client in this process keep bounds, on connections that it makes from now on.

    Where the shell sets one (``XRD_REQUESTTIMEOUT`` and so on), the shell's holds. Without a client, nothing
    happens: opening a file then says what is missing.
    """
    with suppress(ImportError):
        from XRootD.client import EnvPutInt  # type: ignore[attr-defined]

        for name, value in bounds.client_settings().items():
            EnvPutInt(name, value)


def list_directory(address: str, bounds: XRootD) -> list[str]:
    """List the ROOT files in a directory, as addresses.

    Raises
    ------
    InputError
        It cannot be listed.
    MissingDependency
        The XRootD client is not installed.
    """
    files, path = _file_system(address, bounds)
    status, listing = files.dirlist(path)
    if not status.ok:
        raise InputError(f"{address}: cannot be listed: {status.message.strip()}")
    return sorted(address + entry.name for entry in listing if entry.name.endswith(".root"))


def stamp(address: str, bounds: XRootD) -> str | None:
    """Describe the state of a file by its size and time of change; None where the server does not say.

    Raises
    ------
    MissingDependency
        The XRootD client is not installed.
    """
    files, path = _file_system(address, bounds)
    status, info = files.stat(path)
    return f"{info.size} {info.modtime}" if status.ok else None


def forget_connection(address: str) -> None:
    """Let go of the file that fsspec-xrootd keeps open: a broken one would serve the next attempts too."""
    files, path = fsspec.core.url_to_fs(address)
    with suppress(KeyError, OSError):
        files.invalidate_cache(path)


# fsspec-xrootd keeps nothing of the client's status but its text: the number of the error is in brackets.

_NOT_AUTHORISED, _NOT_FOUND = "[3010]", "[3011]"


def is_final(error: OSError) -> bool:
    """Whether a server has said what another attempt would not change: no such file, or no permission."""
    return _NOT_AUTHORISED in str(error) or is_not_found(error)


def is_not_found(error: OSError) -> bool:
    """Whether a server has said that there is no such file."""
    return _NOT_FOUND in str(error)


def is_of_closed_file(error: Exception) -> bool:
    """Whether an error comes of a file that was closed while it was read: the client raises a plain ValueError."""
    return isinstance(error, ValueError) and "closed file" in str(error)


def _file_system(address: str, bounds: XRootD) -> tuple[Any, str]:
    try:
        from XRootD.client import URL, FileSystem  # type: ignore[attr-defined]
    except ImportError:
        raise MissingDependency(
            f"{address}: needs the XRootD client: pip install 'hepdask[xrootd]'"
        ) from None
    set_bounds(bounds)
    url = URL(address)
    return FileSystem(f"{url.protocol}://{url.hostid}"), url.path
