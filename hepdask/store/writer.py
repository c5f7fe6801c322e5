"""Writing a store: each part whole or not at all, the manifest last."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from hepdask.config import Config
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


@dataclass(frozen=True)
class StoreWriter:
    """Writes a store: `start`, then parts in any order and from any process, then `finish`.

    It holds no open file, and travels to workers.

    Attributes
    ----------
    path : Path
        Folder of the store, or a prefix of an object store.
    codec : {"lz4", "zstd"}
        Compressor; ``"zstd"`` makes parts smaller and takes more time.
    mantissa_bits : int
        Bits kept of the particles' floating-point columns, see `round_mantissa`.
    """

    path: Path
    codec: str = "lz4"
    mantissa_bits: int = 23

    @classmethod
    def of(cls, config: Config) -> StoreWriter:
        """Return the writer of the store of a configuration."""
        return cls(config.store_path, config.store.codec, config.store.mantissa_bits)

    def start(self, identity: Mapping[str, Any]) -> None:
        """Create the store, or go on with one of the same identity.

        Parameters
        ----------
        identity : mapping
            JSON-ready, flat: the settings all parts must share.

        Raises
        ------
        StoreError
            The store was made with other settings (each is named).
        """
        if not (self.path / ROOT).exists():
            about = sealed({"schema": SCHEMA, "identity": dict(identity)})
            root = {"zarr_format": 3, "node_type": "group", "attributes": {"hepdask": about}}
            write_json(self.path / ROOT, root)
            return
        refuse_others(self.path, identity)
        self.tidy()

    def tidy(self) -> None:
        """Remove what tasks that died have left; one that only seemed dead finds that its file is gone, and says so."""
        if not is_local(self.path):
            return
        for leftover in (self.path / PARTS).glob(TEMPORARY + "*"):
            with suppress(FileNotFoundError):
                leftover.unlink()

    def parts(self) -> dict[str, dict[str, Any]]:
        """Read what all parts say of themselves, by name; those that are damaged are reported and left out."""
        folder = self.path / PARTS
        if not folder.exists():
            return {}
        names = sorted(
            part.name.removesuffix(SUFFIX)
            for part in folder.iterdir()
            if part.name.endswith(SUFFIX) and not part.name.startswith(TEMPORARY)
        )
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(names, pool.map(lambda name: self.part(name, report=True), names), strict=True)
            return {name: attributes for name, attributes in found if attributes is not None}

    def part(self, name: str, report: bool = False) -> dict[str, Any] | None:
        """Read what a part says of itself; None where it is not there, or damaged, and has to be made again.

        The driver will `report` damage to the person; workers, which look again, need not.
        """
        place = part_file(self.path, name)
        try:
            with PartFile(place) as part:
                attributes = part.attributes()
                if attributes.get("name", name) == name and "checksums" in attributes:
                    return attributes
            raise BadPart("does not say what it is")
        except FileNotFoundError:
            return None
        except BadPart as error:
            if report:
                logger.warning(f"{place}: {error}; it is made again")
            return None

    def write_part(
        self, name: str, arrays: Mapping[str, NDArray], attributes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write a part under a temporary name and move it into place.

        Parameters
        ----------
        name : str
            Name of the part.
        arrays : mapping
            The arrays of `layout.DTYPES`, or those of `layout.IMPORTED_DTYPES`.
        attributes : mapping
            JSON-ready provenance; checksums are added.

        Returns
        -------
        dict
            The attributes as written.

        Raises
        ------
        OutputError
            It cannot be written; nothing is left behind.
        StoreError
            Another driver removed it while it was written.

        Notes
        -----
        A part that is there already is replaced: by the same bytes, or it was damaged. An object store cannot rename;
        there an object appears whole by itself.
        """
        members, written = _members(arrays, attributes, self.codec, self.mantissa_bits)
        place = part_file(self.path, name)
        if not is_local(self.path):
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

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Put the manifest in place: from now on the store is complete."""
        write_sealed(self.path / MANIFEST, dict(manifest))


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
