"""Loops compiled by numba, and kept on disk so that no process takes the code of anything but this function and types.

numba numbers the files of compiled code and writes the list of them first. Two processes that compile the same function
for different types at the same time may both take number 1; one that is killed between list and file, or reads between
the two, takes what an older source has left there. Code for other types or of another source then runs: it crashes, or
computes something else. Here each file is called by all that its code depends on, and is there before it is listed: at
worst something is compiled twice.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import IndexDataCacheFile

F = TypeVar("F", bound=Callable[..., Any])

_ROOM = Path(__file__).parent


class _Kept(IndexDataCacheFile):
    """The compiled forms of one function, by the names of their files."""

    def save(self, key: Any, data: Any) -> None:
        """Keep the code for some types, then list it."""
        kept = self._load_index()
        name = f"{self._index_name}.{self._digest(key)}.nbc"
        self._save_data(name, data)
        if kept.get(key) != name:
            self._save_index(self._load_index() | {key: name})

    def _digest(self, key: Any) -> str:
        content = repr((self._version, self._source_stamp, key))
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def compiled(**options: Any) -> Callable[[F], F]:
    """Compile a function with `numba.njit`, without holding the interpreter's lock, and keep the code on disk.

    Parameters
    ----------
    **options
        As `numba.njit` takes them.
    """

    def decorate(function: F) -> F:
        dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
        cache = dispatcher._cache
        before = cache._cache_file
        stamp = _sources(function.__code__.co_filename)
        cache._cache_file = _Kept(cache.cache_path, before._index_name.removesuffix(".nbi"), stamp)
        return cast(F, dispatcher)

    return decorate


def _sources(file: str) -> str:
    """Digest of a source file and of all of this room, whose functions call each other."""
    return hashlib.blake2b(Path(file).read_bytes() + _digest_of(_ROOM), digest_size=16).hexdigest()


@functools.cache
def _digest_of(folder: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes() + b"\0")
    return digest.digest()
