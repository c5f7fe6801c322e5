"""Writing a store: each part whole or not at all, the manifest last."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from hepdask.artifacts import read_json, write_json
from hepdask.errors import StoreError
from hepdask.folders import is_local, remove, zarr_store
from hepdask.store.layout import DTYPES, IMPORTED_DTYPES, MANIFEST, PARTICLE_DTYPES, PARTS, SCHEMA, checksum
from hepdask.store.lock import LOCK

_CHUNK_BYTES = 64 << 20  # a column is nearly always one chunk: nothing here reads less than a whole one
_ZSTD_BLOCK = 1 << 20
_TEMPORARY = ".writing-"
_REMOVED = ".removed-"
_READERS = 16


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
        The store was made with other settings (each is named).
    """
    if not (path / "zarr.json").exists():
        root = zarr.create_group(
            store=zarr_store(path), attributes={"hepdask": {"schema": SCHEMA, "identity": dict(identity)}}
        )
        root.create_group(PARTS)
        return
    refuse_others(path, identity)
    tidy(path)


def tidy(path: Path) -> None:
    """Remove what tasks that died have left.

    One that only seemed dead must not move a half-empty folder into place: the folder gets another name first.
    """
    if not is_local(path):
        return
    for leftover in (path / PARTS).glob(_TEMPORARY + "*"):
        with suppress(FileNotFoundError):
            os.rename(leftover, path / PARTS / f"{_REMOVED}{uuid.uuid4().hex}")
    for leftover in (path / PARTS).glob(_REMOVED + "*"):
        remove(leftover)


def refuse_strangers(path: Path) -> None:
    """Raise a StoreError where a folder holds something that is not a store."""
    if not path.exists() or (path / "zarr.json").exists():
        return
    if not path.is_dir() or any(found.name != LOCK for found in path.iterdir()):
        raise StoreError(f"{path}: not a hepdask store, and not empty; give another store.path")


def refuse_others(path: Path, identity: Mapping[str, Any]) -> None:
    """Raise a StoreError that names each setting in which a store differs from `identity`."""
    attributes: dict[str, Any] = zarr.open_group(zarr_store(path), mode="r").attrs.asdict()
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


def parts(path: Path) -> dict[str, dict[str, Any]]:
    """Read what all complete parts of a store say of themselves, by name."""
    folder = path / PARTS
    names = [
        part.name
        for part in folder.iterdir()
        if not part.name.startswith((_TEMPORARY, _REMOVED, "zarr.json"))
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(names, pool.map(lambda name: part_attributes(path, name), names), strict=True)
        return {name: attributes for name, attributes in found if attributes is not None}


def part_attributes(path: Path, name: str) -> dict[str, Any] | None:
    """Read what a part says of itself; None where it is not there or not complete."""
    document = read_json(path / PARTS / name / "zarr.json") or {}
    attributes = document.get("attributes", {})
    return attributes if "checksums" in attributes else None


def write_part(
    path: Path,
    name: str,
    arrays: Mapping[str, NDArray],
    attributes: Mapping[str, Any],
    codec: str = "lz4",
    mantissa_bits: int = 23,
) -> dict[str, Any]:
    """Write a part under a temporary name and move it into place.

    Parameters
    ----------
    path : Path
        The store.
    name : str
        Name of the part.
    arrays : mapping
        The arrays of `layout.DTYPES`, or those of `layout.IMPORTED_DTYPES`.
    attributes : mapping
        JSON-ready provenance; checksums are added.
    codec : str
        Compressor: ``"lz4"``, or ``"zstd"`` for smaller parts that cost more time.
    mantissa_bits : int
        Bits kept of the particles' floating-point columns, see `round_mantissa`.

    Returns
    -------
    dict
        The attributes as written.

    Notes
    -----
    Where another task has written the same part meanwhile, that one stays: both are the same. An object store cannot
    rename: there the part is made on a local disk and copied, what makes it complete last. Two tasks that copy the
    same part at once copy the same bytes.
    """
    place = path / PARTS / name
    if is_local(path):
        temporary = path / PARTS / f"{_TEMPORARY}{uuid.uuid4().hex}"
        written = _write_group(temporary, arrays, attributes, codec, mantissa_bits)
        _move(temporary, place, arrays)
        return written
    with tempfile.TemporaryDirectory(prefix="hepdask-") as made:
        written = _write_group(Path(made), arrays, attributes, codec, mantissa_bits)
        _copy(Path(made), place)
    return written


def _write_group(
    place: Path, arrays: Mapping[str, NDArray], attributes: Mapping[str, Any], codec: str, mantissa_bits: int
) -> dict[str, Any]:
    checksums = {}
    group = zarr.create_group(store=place)
    for array, dtype in (DTYPES if "kind" in arrays else IMPORTED_DTYPES).items():
        values = np.ascontiguousarray(arrays[array], dtype=dtype)
        if values.dtype == np.float32 and array in PARTICLE_DTYPES:
            values = round_mantissa(values, mantissa_bits)
        checksums[array] = checksum(values)
        _write_array(group, array, values, codec)
    written = {**attributes, "checksums": checksums}
    group.update_attributes(written)  # at once: `attrs.update` writes the file again for each key
    return written


def _copy(made: Path, place: Path) -> None:
    """Copy a group into an object store, its attributes last."""
    files = [file for file in made.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file == made / "zarr.json"):
        (place / file.relative_to(made).as_posix()).write_bytes(file.read_bytes())


def round_mantissa(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round float32 to the nearest with so many bits of the fraction (ties to even); 23 changes nothing.

    The relative error is at most ``2 ** -(bits + 1)``: 0.0005 with 10 bits.
    """
    drop = 23 - bits
    if drop == 0:
        return values
    raw = values.view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1)
    rounded = raw + half + ((raw >> np.uint32(drop)) & np.uint32(1))
    return (rounded & ~np.uint32((1 << drop) - 1)).view(np.float32)


def _move(temporary: Path, place: Path, arrays: Iterable[str]) -> None:
    if not all((temporary / array / "zarr.json").exists() for array in arrays):
        remove(temporary)
        raise StoreError(f"{temporary}: removed by another driver while it was written")
    try:
        os.rename(temporary, place)
    except OSError:
        if (read_json(place / "zarr.json") or {}).get("attributes", {}).get("checksums"):
            remove(temporary)
            return
        remove(place)  # what a lost machine left of a part
        os.rename(temporary, place)


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Put the manifest in place: from now on the store is complete."""
    write_json(path / MANIFEST, manifest)


def _write_array(group: zarr.Group, name: str, values: NDArray, codec: str) -> None:
    pieces = max(1, -(-values.nbytes // _CHUNK_BYTES))
    rows = max(1, -(-len(values) // pieces))
    group.create_array(
        name,
        data=values,
        chunks=(rows, *values.shape[1:]),
        compressors=_compressor(codec, values.itemsize),
        config={"write_empty_chunks": True},  # to look for chunks of zeros takes longer than to compress them
    )


def _compressor(codec: str, size: int) -> BloscCodec:
    """Give the compressor; which shuffle and block serve which was measured: docs/store.md."""
    if codec == "zstd":
        return BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=size, blocksize=_ZSTD_BLOCK)
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=size)
