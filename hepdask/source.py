"""ROOT files as chunks of events: what a file holds, and reading a range of it."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import awkward as ak
import deflate
import fsspec
import uproot

from hepdask import traffic
from hepdask.config import Reading, XRootD
from hepdask.errors import InputError
from hepdask.xrootd import forget_connection, is_xrootd, set_bounds, stamp

#: Collections and their fields.
Fields = Mapping[str, tuple[str, ...]]

_BLOCK = 1 << 22


def _inflate(data: bytes, uncompressed_bytes: int) -> bytearray:
    """Decompress zlib with libdeflate, in little more than half the time that Python's zlib takes."""
    return deflate.zlib_decompress(data, uncompressed_bytes)


# uproot 5.7.7 cannot be told: `uproot.ZLIB.library` has a say in writing only, and calls deflate with an old signature
if hasattr(uproot.compression, "_decompress_ZLIB"):
    uproot.compression._decompress_ZLIB.decompress = _inflate


@dataclass(frozen=True)
class InputFile:
    """A file of a dataset, before it is opened, and what the fileset says of it.

    Attributes
    ----------
    dataset : str
        Name of its dataset; empty for a file that stands in no fileset.
    label : int
        Class of its events.
    path : str
        Its address, by which it is known.
    tree : str
        Name of its TTree or RNTuple.
    checksum : str or None
        ``algorithm:hexadecimal``.
    uuid : str or None
        The UUID it must have.
    entries : int or None
        The entries it must have.
    steps : tuple of (int, int) or None
        Ranges of entries to read; None for all entries.
    """

    dataset: str
    label: int
    path: str
    tree: str
    checksum: str | None = None
    uuid: str | None = None
    entries: int | None = None
    steps: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class FileContent:
    """What an opened file holds.

    Attributes
    ----------
    file : InputFile
        Which file.
    uuid : str
        The UUID that ROOT wrote into it: the identity of its events, wherever it lies.
    bounds : tuple of (int, int)
        The ranges of entries in which it is read.
    stamp : str or None
        Size and time of change (or what the storage has of the kind): as long as it stays the same, so does the
        file. None where nothing of the kind is known.
    """

    file: InputFile
    uuid: str
    bounds: tuple[tuple[int, int], ...]
    stamp: str | None = None

    @property
    def entries(self) -> int:
        """Entries that are read."""
        return sum(stop - start for start, stop in self.bounds)

    @property
    def chunks(self) -> list[Chunk]:
        """The ranges as chunks."""
        return [Chunk(self.file, self.uuid, start, stop) for start, stop in self.bounds]


@dataclass(frozen=True)
class Chunk:
    """The entries ``start:stop`` of a file."""

    file: InputFile
    uuid: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name that no other chunk has, fit for a folder."""
        identity = f"{self.file.dataset}\0{self.uuid}\0{self.file.tree}"
        digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        dataset = re.sub(r"[^\w.-]", "_", self.file.dataset)
        return f"{dataset}-{digest}-{self.start:012d}-{self.stop:012d}"


def inspect_file(
    file: InputFile, address: str, wanted: Fields, renamed: Mapping[str, str], reading: Reading
) -> FileContent:
    """Open a file, say what it holds, and cut it into ranges to be read at once.

    Ranges end where clusters do, if a cluster fits into ``reading.chunk_memory``.

    Parameters
    ----------
    file : InputFile
        Which file.
    address : str
        Where to open it.
    wanted, renamed : mapping
        Fields that will be read, see `read`.
    reading : Reading
        How much to read at once.

    Raises
    ------
    InputError
        The file is missing, not readable, not a ROOT file, has no such tree, or is not the one that the fileset
        describes.
    OSError
        The storage did not answer; worth another attempt.
    """
    with _tree(file, address, reading.xrootd) as tree:
        stamp = file_stamp(address, reading.xrootd)
        if file.checksum is not None:
            _verify(file, address)
        uuid, entries = str(tree.file.uuid), int(tree.num_entries)
        for what, expected, found in (
            ("UUID", file.uuid, uuid),
            ("number of entries", file.entries, entries),
        ):
            if expected is not None and expected != found:
                raise InputError(
                    f"{address}: its {what} is {found}, the fileset (fileset.{file.dataset}) says {expected}"
                )
        if file.steps is not None:
            if file.steps and file.steps[-1][1] > entries:
                raise InputError(
                    f"{address}: has {entries} entries, steps in fileset.{file.dataset} go to {file.steps[-1][1]}"
                )
            return FileContent(file, uuid, file.steps, stamp)
        keys = {
            _branch_of(renamed, collection, field)
            for collection, fields in wanted.items()
            for field in fields
        }
        size, edges = _size_and_clusters(tree, keys)
    most = max(1, int(reading.chunk_memory * 1e6 * entries / size)) if size else entries
    most = min(most, reading.chunk_events or most)
    return FileContent(file, uuid, tuple(cut(edges, most)), stamp)


def file_stamp(address: str, xrootd: XRootD) -> str | None:
    """Describe the state of a file by what its storage knows without reading it; None where that is nothing.

    Raises
    ------
    OSError
        The storage did not answer, or there is no such file.
    """
    if "://" not in address:
        found = os.stat(address)
        return f"{found.st_size} {found.st_mtime_ns}"
    if is_xrootd(address):
        return stamp(address, xrootd)
    path_fs, path = fsspec.core.url_to_fs(address)
    info = path_fs.info(path)
    known = {key: str(info[key]) for key in ("size", "ETag", "mtime", "LastModified") if info.get(key)}
    return " ".join(known.values()) if len(known) > 1 else None


def _verify(file: InputFile, address: str) -> None:
    """Read the whole file and compare its checksum with the fileset's."""
    assert file.checksum is not None
    algorithm, _, expected = file.checksum.partition(":")
    digest = None if algorithm == "adler32" else hashlib.new(algorithm)
    adler = 1
    with fsspec.open(address, "rb") as opened:
        while block := opened.read(_BLOCK):
            if digest is None:
                adler = zlib.adler32(block, adler)
            else:
                digest.update(block)
    found = f"{adler:08x}" if digest is None else digest.hexdigest()
    if found != expected.lower().rjust(len(found), "0"):
        raise InputError(
            f"{address}: damaged or another file: its checksum is {algorithm}:{found}, fileset.{file.dataset} says "
            f"{expected}"
        )


def _size_and_clusters(tree: Any, keys: set[str]) -> tuple[float, list[int]]:
    """Give the uncompressed bytes of some branches, and the entries at which clusters of all of them begin and end."""
    if _is_rntuple(tree):
        # its size on disk stands in: what is not wanted of it makes up for what compression saves
        clusters = tree.cluster_summaries
        return float(tree.num_bytes), [*(int(c.num_first_entry) for c in clusters), int(tree.num_entries)]
    branches = [branch for branch in tree.itervalues(recursive=True) if branch.name in keys]
    if not branches:
        return 0.0, [0, int(tree.num_entries)]
    edges = set.intersection(*(set(map(int, branch.entry_offsets)) for branch in branches))
    edges |= {0, int(tree.num_entries)}
    return float(sum(branch.uncompressed_bytes for branch in branches)), sorted(edges)


def cut(edges: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut entries into ranges of at most `most`, at edges where possible, in equal pieces in between."""
    start = 0
    for edge, following in pairwise(edges):
        if following - start > most and edge > start:
            yield start, edge
            start = edge
        while following - start > most:
            pieces = -(-(following - start) // most)
            stop = start + (following - start) // pieces
            yield start, stop
            start = stop
    if start < edges[-1]:
        yield start, edges[-1]


def read(
    chunk: Chunk,
    wanted: Fields,
    optional: Fields | None = None,
    renamed: Mapping[str, str] | None = None,
    address: str | None = None,
    xrootd: XRootD | None = None,
) -> ak.Array:
    """Read the wanted fields of a chunk.

    Parameters
    ----------
    chunk : Chunk
        Which entries of which file.
    wanted : mapping
        Collection to its fields; branches `Collection.Field`, in Delphes' own files or flat, or an RNTuple's fields.
    optional : mapping, optional
        The same for fields that are read where they are.
    renamed : mapping, optional
        ``Collection.Field`` to the branch that holds it, where it is not called so.
    address : str, optional
        Where to read the file, if not at its path.
    xrootd : XRootD, optional
        Bounds of the XRootD client.

    Returns
    -------
    ak.Array
        One record an entry, with a jagged record for each collection.

    Raises
    ------
    InputError
        A branch is missing, has no jagged numbers in it, or its lengths do not agree with its fellows'.
    OSError
        The storage did not answer; worth another attempt.
    """
    address = address or chunk.file.path
    renamed = renamed or {}
    with _tree(chunk.file, address, xrootd or XRootD()) as tree:
        if str(tree.file.uuid) != chunk.uuid:
            raise InputError(
                f"{address}: its UUID is {tree.file.uuid}, not {chunk.uuid}: the file was replaced while the run was "
                "using it; start again"
            )
        found = branch_names(tree)
        present = dict(wanted)
        for collection, fields in (optional or {}).items():
            if all(_branch_of(renamed, collection, field) in found for field in fields):
                present[collection] = (*present.get(collection, ()), *fields)
        keys = {
            _branch_of(renamed, collection, field)
            for collection, fields in present.items()
            for field in fields
        }
        for key in sorted(keys):
            _require_branch(chunk.file, address, found, key)
        try:
            by_name = _arrays(tree, keys, chunk.start, chunk.stop)
        except (OSError, TimeoutError):
            raise
        except Exception as error:
            _raise_if_disconnected(error, address)
            raise InputError(
                f"{address}: entries {chunk.start} to {chunk.stop} cannot be decoded: "
                f"{type(error).__name__}: {error}"
            ) from error
        collections = {
            collection: _zip(
                address,
                collection,
                {field: by_name[_branch_of(renamed, collection, field)] for field in fields},
            )
            for collection, fields in present.items()
        }
        return ak.zip(collections, depth_limit=1)


def _branch_of(renamed: Mapping[str, str], collection: str, field: str) -> str:
    return renamed.get(f"{collection}.{field}", f"{collection}.{field}")


def _is_rntuple(tree: Any) -> bool:
    return "RNTuple" in tree.classname


def branch_names(tree: Any) -> set[str]:
    """Name the branches of a TTree, or the fields of an RNTuple, at every level."""
    return (
        set(tree.keys()) if _is_rntuple(tree) else {branch.name for branch in tree.itervalues(recursive=True)}
    )


def _arrays(tree: Any, keys: set[str], start: int, stop: int) -> dict[str, ak.Array]:
    """Read some branches, by name."""
    if _is_rntuple(tree):
        record = tree.arrays(filter_name=sorted(keys), entry_start=start, entry_stop=stop)
        return {key: record[tuple(key.split("."))] for key in keys}
    arrays = tree.arrays(
        filter_branch=lambda branch: branch.name in keys,
        entry_start=start, entry_stop=stop, library="ak", how=dict,
    )  # fmt: skip
    return {name.rsplit("/", 1)[-1]: array for name, array in arrays.items()}


def _zip(address: str, collection: str, fields: dict[str, ak.Array]) -> ak.Array:
    for field, array in fields.items():
        if array.ndim != 2:
            raise InputError(f"{address}: {collection}.{field} is not a list of numbers for each event")
    try:
        return ak.zip(fields, depth_limit=2)
    except ValueError:
        raise InputError(
            f"{address}: the branches {', '.join(f'{collection}.{field}' for field in fields)} "
            "do not have equally many entries in every event"
        ) from None


@contextmanager
def _tree(file: InputFile, address: str, xrootd: XRootD) -> Iterator[Any]:
    """Open the tree of a file; whatever goes wrong names the address."""
    try:
        with _opened(file, address, xrootd) as tree:
            yield tree
    except OSError:
        if is_xrootd(address):
            forget_connection(address)
        raise


@contextmanager
def _opened(file: InputFile, address: str, xrootd: XRootD) -> Iterator[Any]:
    if is_xrootd(address):
        set_bounds(xrootd)
    try:
        # arrays that uproot keeps would live on in the closed file until Python looks for cycles of garbage
        opened = uproot.open({address: None}, array_cache=None)  # as a dict: a colon is part of the name
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"{address}: {_reason(error)}; check {_named(file)}") from error
    except OSError as error:
        if "[3011]" in str(error) or "[3010]" in str(error):
            raise InputError(f"{address}: {_reason(error)}; check {_named(file)}") from error
        raise
    except Exception as error:
        _raise_if_disconnected(error, address)
        raise InputError(f"{address}: not a readable ROOT file: {_reason(error)}") from error
    with opened, _counted(address, opened):
        try:
            tree = opened[file.tree]
        except KeyError:
            trees = [
                name
                for name, kind in opened.classnames(cycle=False).items()
                if kind.endswith(("Tree", "RNTuple"))
            ]
            raise InputError(
                f"{address}: no tree is called {file.tree}; there are: {', '.join(trees) or 'none'}"
            ) from None
        except OSError:
            raise
        except Exception as error:
            _raise_if_disconnected(error, address)
            raise InputError(
                f"{address}: the description of {file.tree} is damaged: {type(error).__name__}: {_reason(error)}"
            ) from None
        yield tree


@contextmanager
def _counted(address: str, opened: Any) -> Iterator[None]:
    try:
        yield
    finally:
        traffic.count(address, opened.file.source.num_requested_bytes)


def _raise_if_disconnected(error: Exception, address: str) -> None:
    """Raise an OSError where a remote file was closed under us: fsspec-xrootd then raises a ValueError."""
    if "://" in address and isinstance(error, ValueError) and "closed file" in str(error):
        raise OSError(f"{address}: the connection was lost while the file was read") from error


def _require_branch(file: InputFile, address: str, found: set[str], key: str) -> None:
    if key not in found:
        near = difflib.get_close_matches(key, sorted(found), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{address}: tree {file.tree} has no branch {key}{hint} "
            "(physics.collections and physics.branches set the names)"
        )


def _named(file: InputFile) -> str:
    return f"the path in fileset.{file.dataset}" if file.dataset else "the path"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().splitlines()[0]
