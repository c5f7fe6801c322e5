"""Opening a tree of a ROOT file: whatever goes wrong names the file, and says whether another attempt may help."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uproot

from hepdask.config import XRootD
from hepdask.errors import FieldNotFound, HepdaskError, InputError, InputNotFound
from hepdask.input import read_bytes
from hepdask.input.branches import TREE, trees
from hepdask.input.identity import look
from hepdask.input.input_file import InputFile
from hepdask.input.xrootd import (
    forget_connection,
    is_final,
    is_not_found,
    is_of_closed_file,
    is_xrootd,
    set_bounds,
)

#: What another attempt will not fix.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_CODES = (errno.ELOOP, errno.ENAMETOOLONG)


@contextmanager
def open_tree(file: InputFile, address: str, xrootd: XRootD) -> Iterator[Any]:
    """Open the tree of a file; whatever goes wrong names the address.

    Parameters
    ----------
    file : InputFile
        Which file and tree.
    address : str
        Where it is opened.
    xrootd : XRootD
        Bounds of the XRootD client.

    Yields
    ------
    TTree or RNTuple
        As uproot opens it.

    Raises
    ------
    InputError
        There is no such file or tree, it cannot be read, or it is not the one that the driver sees.
    OSError
        The storage did not answer; worth another attempt.
    """
    try:
        with _opened(file, address, xrootd) as tree:
            yield tree
    except HepdaskError:  # some of them are an OSError, too
        raise
    except OSError:
        if is_xrootd(address):
            forget_connection(address)
        raise


@contextmanager
def _opened(file: InputFile, address: str, xrootd: XRootD) -> Iterator[Any]:
    if is_xrootd(address):
        set_bounds(xrootd)
    try:
        with final_errors(file, address):
            if "://" not in address:
                os.stat(address)
            _require_same(file, address)
            # arrays that uproot keeps would live on in the closed file until Python looks for cycles of garbage
            opened = uproot.open({address: None}, array_cache=None)  # as a dict: a colon is part of the name
    except (InputError, OSError):
        raise
    except Exception as error:
        raise_if_disconnected(error, address)
        raise InputError(f"{address}: not a readable ROOT file: {reason_of(error)}") from error
    with opened, _counted(address, opened):
        try:
            tree = opened[file.tree]
        except KeyError:
            raise FieldNotFound(
                f"{address}: no tree is called {file.tree}; there are: {', '.join(trees(opened)) or 'none'}"
            ) from None
        except OSError:
            raise
        except Exception as error:
            raise_if_disconnected(error, address)
            raise InputError(
                f"{address}: the description of {file.tree} is damaged: {type(error).__name__}: {reason_of(error)}"
            ) from None
        kind = "folder" if isinstance(tree, uproot.ReadOnlyDirectory) else tree.classname
        if not TREE.fullmatch(kind):
            raise FieldNotFound(
                f"{address}: {file.tree} is a {kind}, no tree; there are: {', '.join(trees(opened)) or 'none'}"
            )
        yield tree


@contextmanager
def final_errors(file: InputFile, address: str) -> Iterator[None]:
    """Turn what another attempt would not fix into an InputError: no such file, no permission, not a file.

    Parameters
    ----------
    file : InputFile
        Which file.
    address : str
        Where it is opened.

    Raises
    ------
    InputError
        In place of the OSError; an InputNotFound where there is no such file.
    """
    try:
        yield
    except HepdaskError:
        raise
    except OSError as error:
        if not (isinstance(error, _FINAL) or error.errno in _FINAL_CODES or is_final(error)):
            raise
        kind = InputNotFound if isinstance(error, FileNotFoundError) or is_not_found(error) else InputError
        elsewhere = f" on {socket.gethostname()}, though the driver saw it" if file.seen else ""
        raise kind(f"{address}: {reason_of(error)}{elsewhere}; check {_named(file)}") from error


def _require_same(file: InputFile, address: str) -> None:
    """Raise an InputError where something else lies at a local path than the driver sees there."""
    if file.seen is None or address != file.path:
        return
    here = look(address)
    if here is not None and here != file.seen:
        raise InputError(
            f"{address}: {socket.gethostname()} sees another file there ({here.split()[0]} bytes) than the driver "
            f"({file.seen.split()[0]} bytes): the path leads elsewhere there, or the file was changed while the "
            f"run was using it; check {_named(file)}, and start again"
        )


@contextmanager
def _counted(address: str, opened: Any) -> Iterator[None]:
    try:
        yield
    finally:
        read_bytes.count(address, opened.file.source.num_requested_bytes)


def raise_if_disconnected(error: Exception, address: str) -> None:
    """Raise an OSError where a remote file was closed under us."""
    if "://" in address and is_of_closed_file(error):
        raise OSError(f"{address}: the connection was lost while the file was read") from error


def _named(file: InputFile) -> str:
    return f"the path in fileset.{file.dataset}" if file.dataset else "the path"


def reason_of(error: Exception) -> str:
    """Take the first line of what an error says."""
    return (getattr(error, "strerror", None) or str(error)).strip().splitlines()[0]
