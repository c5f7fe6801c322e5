"""The version of hepdask, said here alone, and those of the packages it works with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

__version__ = "0.1.0"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Give the versions of those packages that are installed.

    Parameters
    ----------
    packages : iterable of str
        Names of distributions, as pip calls them.

    Returns
    -------
    dict of str
    """
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
