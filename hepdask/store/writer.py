"""Writing a store: each part whole or not at all, the manifest last."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from hepdask.artifacts import read_json, write_json
from hepdask.errors import StoreError
from hepdask.store.layout import DTYPES, MANIFEST, PARTS, SCHEMA, checksum

_CHUNK_BYTES = 4 << 20
_TEMPORARY = ".writing-"


def start_store(path: Path, identity: Mapping[str, Any]) -> None:
    """Create a store, or go on with one of the same identity.

    Parameters
    ----------
    path : Path
        Folder of the store.
    identity : mapping
        JSON-ready, flat: the settings all parts must share.

    Raises
    ------
    StoreError
        The folder holds something else, or a store made with other settings (each is named).
    """
    if not (path / "zarr.json").exists():
        if path.exists() and any(path.iterdir()):
            raise StoreError(f"{path}: not a hepdask store, and not empty; give another store.path")
        root = zarr.create_group(
            store=path, attributes={"hepdask": {"schema": SCHEMA, "identity": dict(identity)}}
        )
        root.create_group(PARTS)
        return
    refuse_others(path, identity)
    for leftover in (path / PARTS).glob(_TEMPORARY + "*"):
        shutil.rmtree(leftover, ignore_errors=True)


def refuse_others(path: Path, identity: Mapping[str, Any]) -> None:
    """Raise a StoreError that names each setting in which a store differs from `identity`."""
    attributes: dict[str, Any] = zarr.open_group(path, mode="r").attrs.asdict()
    found: dict[str, Any] = attributes.get("hepdask", {})
    if found.get("schema") != SCHEMA:
        raise StoreError(f"{path}: its schema is {found.get('schema')}, this version has {SCHEMA}; remove it")
    before = found["identity"]
    differing = sorted(key for key in before.keys() | identity.keys() if before.get(key) != identity.get(key))
    if differing:
        lines = [f"{key}: {before.get(key)!r} in the store, {identity.get(key)!r} now" for key in differing]
        raise StoreError(
            f"{path} was made with another configuration, and events of both must not be mixed:\n  "
            + "\n  ".join(lines)
            + f"\nGive another store.path, or remove {path}."
        )


def has_part(path: Path, name: str) -> bool:
    """Say whether a part is there; a part that is there is complete."""
    return (path / PARTS / name / "zarr.json").exists()


def part_attributes(path: Path, name: str) -> dict[str, Any]:
    """Read what a part says of itself."""
    return read_json(path / PARTS / name / "zarr.json")["attributes"]


def write_part(path: Path, name: str, arrays: Mapping[str, NDArray], attributes: Mapping[str, Any]) -> None:
    """Write a part under a temporary name and move it into place.

    Parameters
    ----------
    path : Path
        The store.
    name : str
        Name of the part.
    arrays : mapping
        The arrays of `layout.DTYPES`.
    attributes : mapping
        JSON-ready provenance; checksums are added.

    Notes
    -----
    Where another task has written the same part meanwhile, that one stays: both are the same.
    """
    temporary = path / PARTS / f"{_TEMPORARY}{uuid.uuid4().hex}"
    checksums = {}
    group = zarr.create_group(store=temporary)
    for array, dtype in DTYPES.items():
        values = np.ascontiguousarray(arrays[array], dtype=dtype)
        checksums[array] = checksum(values)
        _write_array(group, array, values)
    group.attrs.update({**attributes, "checksums": checksums})
    try:
        os.rename(temporary, path / PARTS / name)
    except OSError:
        if has_part(path, name):
            shutil.rmtree(temporary)
            return
        shutil.rmtree(path / PARTS / name)  # what a lost machine left of a part
        os.rename(temporary, path / PARTS / name)


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Put the manifest in place: from now on the store is complete."""
    write_json(path / MANIFEST, manifest)


def _write_array(group: zarr.Group, name: str, values: NDArray) -> None:
    row = max(1, values.itemsize * int(np.prod(values.shape[1:])))
    rows = max(1, min(len(values), _CHUNK_BYTES // row))
    pieces = -(-len(values) // rows) if len(values) else 1
    group.create_array(
        name,
        data=values,
        chunks=(rows, *values.shape[1:]),
        shards=(rows * pieces, *values.shape[1:]) if pieces > 1 else None,
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=values.itemsize),
    )
