"""What a file holds: which events these are, and the ranges of entries in which they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hepdask.config import Input
from hepdask.errors import InputError
from hepdask.input.branches import Fields, branch_keys, is_rntuple
from hepdask.input.identity import Identity, file_stamp, identify, verify_checksum
from hepdask.input.input_file import Chunk, InputFile
from hepdask.input.opening import open_tree, raise_if_disconnected, reason_of


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
    with open_tree(file, address, reading.xrootd) as tree:
        stamp = file_stamp(address, reading.xrootd)
        if file.checksum is not None:
            verify_checksum(address, file.checksum, file.dataset)
        entries = int(tree.num_entries)
        for what, expected, found in (
            ("UUID", file.uuid, str(tree.file.uuid)),
            ("number of entries", file.entries, entries),
        ):
            if expected is not None and expected != found:
                raise InputError(
                    f"{address}: its {what} is {found}, the fileset (fileset.{file.dataset}) says {expected}"
                )
        keys = branch_keys(wanted, renamed)
        try:
            identity = identify(tree, keys)
        except OSError:
            raise
        except Exception as error:
            raise_if_disconnected(error, address)
            raise InputError(
                f"{address}: the description of {file.tree} is damaged: {reason_of(error)}"
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


def _size_and_clusters(tree: Any, keys: set[str]) -> tuple[float, list[int]]:
    """Give the uncompressed bytes of some branches, and the entries at which clusters of all of them begin and end."""
    if is_rntuple(tree):
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
