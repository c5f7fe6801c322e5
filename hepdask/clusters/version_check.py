"""Whether the workers run what the driver runs."""

from __future__ import annotations

from typing import Any

from distributed import Client

from hepdask.monitoring.answers import answer

#: What tasks, results and processors are made of, beside what Dask compares anyway.
PACKAGES = ("hepdask", "awkward", "boost-histogram", "coffea", "hist", "numba", "uproot", "zarr")


def differences(client: Client) -> list[str]:
    """Name the packages, Python among them, that are not the same here and on all workers that are connected.

    Returns
    -------
    list of str
        One entry a package: its version here, and those on workers that have others.
    """
    versions: Any = answer(client, lambda: client.get_versions(packages=list(PACKAGES)))
    here = versions["client"]["packages"]
    found = []
    for name, version in here.items():
        there = {worker["packages"].get(name) for worker in versions["workers"].values()} - {version}
        if there:
            others = ", ".join(sorted(str(other or "none") for other in there))
            found.append(f"{name} {version or 'none'} here, {others} there")
    return found
