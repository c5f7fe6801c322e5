"""Where a store lies: a folder of a file system, or a prefix of an object store such as S3.

Both are used through the same paths: `pathlib.Path`, or `upath.UPath`, which has its methods.
"""

from __future__ import annotations

import pathlib
from pathlib import Path
from typing import cast

from hepdask.errors import MissingDependency
from hepdask.files.paths import is_url, local_path


def folder(address: str | Path) -> Path:
    """Give the path of an address: a `Path`, absolute, or a `UPath` where it begins with a protocol.

    Raises
    ------
    ConfigError
        A variable in it is not set, or there is no such home folder.
    MissingDependency
        The library for this protocol is not installed.
    """
    if not is_url(str(address)):
        return local_path(address)
    from upath import UPath

    try:
        # other processes write into it, so no list of files may be kept
        path = UPath(address, use_listings_cache=False)
        path.fs  # noqa: B018  the file system is looked up here
    except ImportError as error:
        raise MissingDependency(f"{address}: {error}; for S3: pip install 'hepdask[s3]'") from None
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Say whether a path is one of a file system, on which files can be renamed and locked."""
    return isinstance(path, pathlib.Path)
