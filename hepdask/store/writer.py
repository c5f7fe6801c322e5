"""Writing a store: each part whole or not at all, the manifest last."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from hepdask.errors import HepdaskError, OutputError, StoreError
from hepdask.files.atomic import TEMPORARY, read_json, renamed_to, sealed, unsealed, write_json, write_sealed
from hepdask.files.folders import is_local
from hepdask.files.lock import LOCKS
from hepdask.files.outputs import writing
from hepdask.store.layout import (
    DTYPES,
    IMPORTED_DTYPES,
    MANIFEST,
    PARTICLE_DTYPES,
    PARTS,
    ROOT,
    SCHEMA,
    SUFFIX,
    checksum,
    part_file,
)
from hepdask.store.part_file import CHUNK_BYTES, BadPart, PartFile, write_archive

logger = logging.getLogger(__name__)

_ZSTD_BLOCK = 1 << 20
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
    if not (path / ROOT).exists():
        about = sealed({"schema": SCHEMA, "identity": dict(identity)})
        write_json(path / ROOT, {"zarr_format": 3, "node_type": "group", "attributes": {"hepdask": about}})
        return
    refuse_others(path, identity)
    tidy(path)


def tidy(path: Path) -> None:
    """Remove what tasks that died have left; one that only seemed dead finds that its file is gone, and says so."""
    if not is_local(path):
        return
    for leftover in (path / PARTS).glob(TEMPORARY + "*"):
        with suppress(FileNotFoundError):
            leftover.unlink()


def refuse_strangers(path: Path) -> None:
    """Raise a StoreError where a folder holds something that is not a store."""
    if not path.exists() or (path / ROOT).exists():
        return
    if not path.is_dir() or any(found.name not in LOCKS for found in path.iterdir()):
        raise StoreError(f"{path}: not a hepdask store, and not empty; give another store.path")


def refuse_others(path: Path, identity: Mapping[str, Any]) -> None:
    """Raise a StoreError that names each setting in which a store differs from `identity`."""
    found = _root(path)
    if found.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: its schema is {found.get('schema')}, this version has {SCHEMA}; remove it, and prepare it again"
        )
    before = found["identity"]
    differing = sorted(key for key in before.keys() | identity.keys() if before.get(key) != identity.get(key))
    if differing:
        lines = [f"{key}: {before.get(key)!r} in the store, {identity.get(key)!r} now" for key in differing]
        raise StoreError(
            f"{path} was made with another configuration, and events of both must not be mixed:\n  "
            + "\n  ".join(lines)
            + f"\nGive another store.path, or remove {path}."
        )


def _root(path: Path) -> dict[str, Any]:
    """Read what a store says of itself."""
    try:
        document = read_json(path / ROOT)
        found = document["attributes"]["hepdask"]
        if found["schema"] != SCHEMA:
            return found
        found = unsealed(found)
    except (HepdaskError, KeyError, TypeError):
        found = None
    if not found or not isinstance(found.get("identity"), dict):
        raise StoreError(
            f"{path / ROOT}: damaged, and nothing else says how the store was made; {_again(path)}"
        )
    return found


def _again(path: Path) -> str:
    return f"remove {path} and make it again: hepdask prepare CONFIG, or hepdask import CONFIG FILE"


def parts(path: Path) -> dict[str, dict[str, Any]]:
    """Read what all parts of a store say of themselves, by name; those that are damaged are told and left out."""
    folder = path / PARTS
    if not folder.exists():
        return {}
    names = sorted(
        part.name.removesuffix(SUFFIX)
        for part in folder.iterdir()
        if part.name.endswith(SUFFIX) and not part.name.startswith(TEMPORARY)
    )
    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(names, pool.map(lambda name: part_attributes(path, name, tell=True), names), strict=True)
        return {name: attributes for name, attributes in found if attributes is not None}


def part_attributes(path: Path, name: str, tell: bool = False) -> dict[str, Any] | None:
    """Read what a part says of itself; None where it is not there, or damaged, and has to be made again.

    The driver will `tell` the person of damage; workers, which look again, need not.
    """
    place = part_file(path, name)
    try:
        with PartFile(place) as part:
            attributes = part.attributes()
            if attributes.get("name", name) == name and "checksums" in attributes:
                return attributes
        raise BadPart("does not say what it is")
    except FileNotFoundError:
        return None
    except BadPart as error:
        if tell:
            logger.warning(f"{place}: {error}; it is made again")
        return None


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
    A part that is there already is replaced: by the same bytes, or it was damaged. An object store cannot rename;
    there an object appears whole by itself.
    """
    members, written = _members(arrays, attributes, codec, mantissa_bits)
    place = part_file(path, name)
    if not is_local(path):
        content = io.BytesIO()
        write_archive(content, members)
        place.write_bytes(content.getvalue())
        return written
    with writing(place):
        place.parent.mkdir(exist_ok=True)
        try:
            with renamed_to(place) as temporary, temporary.open("xb") as file:
                write_archive(file, members)
        except OutputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise StoreError(f"{place}: removed by another driver while it was written") from None
    return written


def _members(
    arrays: Mapping[str, NDArray], attributes: Mapping[str, Any], codec: str, mantissa_bits: int
) -> tuple[dict[str, memoryview], dict[str, Any]]:
    """Make the group of a part in memory: its files by name, and its attributes."""
    checksums, ready = {}, {}
    for array, dtype in (DTYPES if "kind" in arrays else IMPORTED_DTYPES).items():
        values = np.ascontiguousarray(arrays[array], dtype=dtype)
        if values.dtype == np.float32 and array in PARTICLE_DTYPES:
            values = round_mantissa(values, mantissa_bits)
        checksums[array] = checksum(values)
        ready[array] = values
    written = {**attributes, "checksums": checksums}
    files: dict[str, Any] = {}
    group = zarr.create_group(
        store=zarr.storage.MemoryStore(store_dict=files), attributes=written, zarr_format=3
    )
    for array, values in ready.items():
        _write_array(group, array, values, codec)
    return {name: memoryview(content.as_numpy_array()) for name, content in files.items()}, written


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


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Put the manifest in place: from now on the store is complete."""
    write_sealed(path / MANIFEST, dict(manifest))


def _write_array(group: zarr.Group, name: str, values: NDArray, codec: str) -> None:
    pieces = max(1, -(-values.nbytes // CHUNK_BYTES))
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
