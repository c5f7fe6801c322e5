"""ROOT files as chunks of events: what a file holds, and reading a range of it."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import queue
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import awkward as ak
import fsspec
import uproot

from hepdask.config import Input, XRootD
from hepdask.errors import FieldNotFound, HepdaskError, InputError, InputNotFound
from hepdask.input import read_bytes
from hepdask.input.inflate import Inflating
from hepdask.input.xrootd import (
    forget_connection,
    is_final,
    is_not_found,
    is_of_closed_file,
    is_xrootd,
    set_bounds,
    stamp,
)

#: Collections and their fields.
Fields = Mapping[str, tuple[str, ...]]

_BLOCK = 1 << 22
_HEAD_BYTES = 100  # the header of a ROOT file: its UUID, its end, where its keys lie
_SAMPLE_BYTES = 1024  # looked at of the first basket of each branch that is read
_TREE = re.compile(r"TTree|TNtupleD?|ROOT::(Experimental::)?RNTuple")

#: What another attempt will not mend.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_CODES = (errno.ELOOP, errno.ENAMETOOLONG)

#: What decompresses, in reads of this module only.
_INFLATING = Inflating()


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
    seen : str or None
        What the driver sees at its path, see `look`; a worker must see the same.
    """

    dataset: str
    label: int
    path: str
    tree: str
    checksum: str | None = None
    uuid: str | None = None
    entries: int | None = None
    steps: tuple[tuple[int, int], ...] | None = None
    seen: str | None = None

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Identity:
    """What tells a tree in a file from all others, found in the file itself: its copies share it wherever they lie.

    A UUID alone does not tell: a file that is updated keeps it, and programs give the same one, or none, to many files.

    Attributes
    ----------
    uuid : str
        What ROOT calls the file.
    origin : str
        Digest of the UUID, the entries, and the uncompressed size of each branch. The split is decided from it: it
        stays the same where the same events are written once more.
    layout : str
        Digest of the UUID and of the description of the tree with the places and sizes of all baskets (of an RNTuple
        its checksums): another one whenever the tree is written again.
    sample : str
        Digest of the first bytes of the branches that are read: other values in the same places differ in it.
    """

    uuid: str
    origin: str
    layout: str
    sample: str

    @property
    def version(self) -> str:
        """All of it in one word."""
        return f"{self.layout}{self.sample}"


@dataclass(frozen=True)
class FileContent:
    """What an opened file holds.

    Attributes
    ----------
    file : InputFile
        Which file.
    identity : Identity
        Which events these are.
    bounds : tuple of (int, int)
        The ranges of entries in which it is read.
    stamp : str or None
        Size and time of change (or what the storage has of the kind): as long as it stays the same, so does the
        file. None where nothing of the kind is known.
    """

    file: InputFile
    identity: Identity
    bounds: tuple[tuple[int, int], ...]
    stamp: str | None = None

    @property
    def entries(self) -> int:
        """Entries that are read."""
        return sum(stop - start for start, stop in self.bounds)

    @property
    def chunks(self) -> list[Chunk]:
        """The ranges as chunks."""
        return [Chunk(self.file, self.identity, start, stop) for start, stop in self.bounds]


@dataclass(frozen=True)
class Chunk:
    """The entries ``start:stop`` of a file."""

    file: InputFile
    identity: Identity
    start: int
    stop: int

    def __str__(self) -> str:
        return f"entries {self.start:,} to {self.stop:,} of {self.file.path}"

    @property
    def name(self) -> str:
        """Name that no other chunk has, fit for a folder."""
        digest = _digest(self.file.dataset, self.identity.version, self.file.tree)
        dataset = re.sub(r"[^\w.-]", "_", self.file.dataset, flags=re.ASCII)[:64]
        return f"{dataset}-{digest}-{self.start:012d}-{self.stop:012d}"


def look(path: str) -> str | None:
    """Say what lies at a local path: its size and a digest of its first bytes; None where nothing can be seen.

    Of a ROOT file those bytes hold the UUID, the end, and the place of what was written last.
    """
    if "://" in path:
        return None
    try:
        with open(path, "rb") as file:
            return f"{os.fstat(file.fileno()).st_size} {_digest(file.read(_HEAD_BYTES))}"
    except OSError:
        return None


def _digest(*content: str | bytes) -> str:
    return hashlib.blake2b(
        b"\0".join(part.encode() if isinstance(part, str) else part for part in content), digest_size=8
    ).hexdigest()


def inspect_file(
    file: InputFile, address: str, wanted: Fields, renamed: Mapping[str, str], reading: Input
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
    reading : Input
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
        entries = int(tree.num_entries)
        for what, expected, found in (
            ("UUID", file.uuid, str(tree.file.uuid)),
            ("number of entries", file.entries, entries),
        ):
            if expected is not None and expected != found:
                raise InputError(
                    f"{address}: its {what} is {found}, the fileset (fileset.{file.dataset}) says {expected}"
                )
        keys = _keys(wanted, renamed)
        try:
            identity = identify(tree, keys)
        except OSError:
            raise
        except Exception as error:
            _raise_if_disconnected(error, address)
            raise InputError(
                f"{address}: the description of {file.tree} is damaged: {_reason(error)}"
            ) from error
        if file.steps is not None:
            if file.steps and file.steps[-1][1] > entries:
                raise InputError(
                    f"{address}: has {entries} entries, steps in fileset.{file.dataset} go to {file.steps[-1][1]}"
                )
            return FileContent(file, identity, file.steps, stamp)
        size, edges = _size_and_clusters(tree, keys)
    most = max(1, int(reading.chunk_memory * 1e6 * entries / size)) if size else entries
    most = min(most, reading.chunk_events or most)
    return FileContent(file, identity, tuple(cut(edges, most)), stamp)


def identify(tree: Any, keys: set[str]) -> Identity:
    """Tell an opened tree from all others; of the branches `keys`, the first bytes are looked at.

    Parameters
    ----------
    tree : TTree or RNTuple
        As uproot opens it.
    keys : set of str
        Names of branches.

    Returns
    -------
    Identity
    """
    uuid, entries = str(tree.file.uuid), str(tree.num_entries)
    if _is_rntuple(tree):
        pages = [
            column.pages[0].locator
            for envelope in tree.page_list_envelopes[:1]
            for cluster in envelope.pagelinklist[:1]
            for column in cluster
            if column.pages
        ]
        starts = [(int(page.offset), int(page.num_bytes)) for page in pages]
        sizes = [*branch_names(tree)]
    else:
        branches = list(tree.itervalues(recursive=True))
        starts = [
            (int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0]))
            for branch in branches
            if branch.name in keys and branch.num_baskets and branch.member("fBasketSeek")[0] > 0
        ]
        sizes = [f"{branch.name} {branch.uncompressed_bytes}" for branch in branches]
    ranges = [(start, start + min(length, _SAMPLE_BYTES)) for start, length in sorted(starts) if length > 0]
    chunks = tree.file.source.chunks(ranges, queue.Queue()) if ranges else []
    sample = [bytes(chunk.raw_data) for chunk in chunks]
    return Identity(uuid, _digest(uuid, entries, *sorted(sizes)), _layout(tree), _digest(*sample))


def _layout(tree: Any) -> str:
    """Digest the UUID of a file and what it says of a tree: where everything lies, and how large it is."""
    uuid = str(tree.file.uuid)
    if not _is_rntuple(tree):
        return _digest(uuid, bytes(tree.chunk.raw_data))
    checksums = [tree.footer.checksum, *(envelope.checksum for envelope in tree.page_list_envelopes)]
    return _digest(uuid, repr(sorted(tree.all_members.items())), repr(checksums))


def file_stamp(address: str, xrootd: XRootD) -> str | None:
    """Describe the state of a file by what its storage knows without reading it; None where that is nothing.

    Raises
    ------
    OSError
        The storage did not answer, or there is no such file.
    """
    if "://" not in address:
        found = os.stat(address)
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"  # the last one cannot be set back
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
    FieldNotFound
        A branch is missing.
    InputError
        A branch has no jagged numbers in it, or its lengths do not agree with its fellows'.
    OSError
        The storage did not answer; worth another attempt.
    """
    address = address or chunk.file.path
    renamed = renamed or {}
    with _tree(chunk.file, address, xrootd or XRootD()) as tree:
        if _layout(tree) != chunk.identity.layout:
            raise InputError(
                f"{address}: not the file that was opened before (its UUID was {chunk.identity.uuid}): it was replaced "
                "or changed while the run was using it; start again"
            )
        found = branch_names(tree)
        present = dict(wanted)
        for collection, fields in (optional or {}).items():
            if all(_branch_of(renamed, collection, field) in found for field in fields):
                present[collection] = (*present.get(collection, ()), *fields)
        keys = _keys(present, renamed)
        if missing := missing_branches(tree, present, renamed):
            near = difflib.get_close_matches(missing[0], sorted(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise FieldNotFound(
                f"{address}: tree {chunk.file.tree} has no branch {missing[0]}{hint} "
                "(analysis.collections and analysis.branches set the names)"
            )
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


def _keys(wanted: Fields, renamed: Mapping[str, str]) -> set[str]:
    return {
        _branch_of(renamed, collection, field) for collection, fields in wanted.items() for field in fields
    }


def _is_rntuple(tree: Any) -> bool:
    return "RNTuple" in tree.classname


def branch_names(tree: Any) -> set[str]:
    """Name the branches of a TTree, or the fields of an RNTuple, at every level."""
    return (
        set(tree.keys()) if _is_rntuple(tree) else {branch.name for branch in tree.itervalues(recursive=True)}
    )


def missing_branches(tree: Any, wanted: Fields, renamed: Mapping[str, str]) -> list[str]:
    """Name the branches of wanted fields that an opened tree does not have, in alphabetical order."""
    return sorted(_keys(wanted, renamed) - branch_names(tree))


def trees(opened: Any) -> list[str]:
    """Name the trees and RNTuples of an opened file, those in folders too."""
    return [name for name, kind in opened.classnames(cycle=False).items() if _TREE.fullmatch(kind)]


def _arrays(tree: Any, keys: set[str], start: int, stop: int) -> dict[str, ak.Array]:
    """Read some branches, by name."""
    if _is_rntuple(tree):
        record = tree.arrays(filter_name=sorted(keys), entry_start=start, entry_stop=stop)
        return {key: _field(record, key) for key in keys}
    arrays = tree.arrays(
        filter_branch=lambda branch: branch.name in keys,
        entry_start=start, entry_stop=stop, library="ak", how=dict, decompression_executor=_INFLATING,
    )  # fmt: skip
    return {name.rsplit("/", 1)[-1]: array for name, array in arrays.items()}


def _field(record: ak.Array, key: str) -> ak.Array:
    """Take a field by its path, in which dots separate the levels, or are part of a name."""
    if key in record.fields:
        return record[key]
    for dot in (place for place, letter in enumerate(key) if letter == "."):
        if key[:dot] in record.fields:
            with suppress(KeyError):
                return _field(record[key[:dot]], key[dot + 1 :])
    raise KeyError(f"no field {key}")


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
    except HepdaskError:  # some of them are an OSError, too
        raise
    except OSError:
        if is_xrootd(address):
            forget_connection(address)
        raise


@contextmanager
def final_errors(file: InputFile, address: str) -> Iterator[None]:
    """Turn what another attempt would not mend into an InputError: no such file, no permission, not a file.

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
        raise kind(f"{address}: {_reason(error)}{elsewhere}; check {_named(file)}") from error


def _require_same(file: InputFile, address: str) -> None:
    """Raise an InputError where something else lies at a local path than the driver sees there."""
    if file.seen is None or address != file.path:
        return
    here = look(address)
    if here is not None and here != file.seen:
        raise InputError(
            f"{address}: {socket.gethostname()} sees another file there ({here.split()[0]} bytes) than the driver "
            f"({file.seen.split()[0]} bytes): the path means something else there, or the file was changed while the "
            f"run was using it; check {_named(file)}, and start again"
        )


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
        _raise_if_disconnected(error, address)
        raise InputError(f"{address}: not a readable ROOT file: {_reason(error)}") from error
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
            _raise_if_disconnected(error, address)
            raise InputError(
                f"{address}: the description of {file.tree} is damaged: {type(error).__name__}: {_reason(error)}"
            ) from None
        kind = "folder" if isinstance(tree, uproot.ReadOnlyDirectory) else tree.classname
        if not _TREE.fullmatch(kind):
            raise FieldNotFound(
                f"{address}: {file.tree} is a {kind}, no tree; there are: {', '.join(trees(opened)) or 'none'}"
            )
        yield tree


@contextmanager
def _counted(address: str, opened: Any) -> Iterator[None]:
    try:
        yield
    finally:
        read_bytes.count(address, opened.file.source.num_requested_bytes)


def _raise_if_disconnected(error: Exception, address: str) -> None:
    """Raise an OSError where a remote file was closed under us."""
    if "://" in address and is_of_closed_file(error):
        raise OSError(f"{address}: the connection was lost while the file was read") from error


def _named(file: InputFile) -> str:
    return f"the path in fileset.{file.dataset}" if file.dataset else "the path"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().splitlines()[0]
