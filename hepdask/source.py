"""ROOT files as chunks of events: what a file holds, and reading a range of it."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import awkward as ak
import uproot

from hepdask.errors import InputError


@dataclass(frozen=True)
class InputFile:
    """A file of a dataset, before it is opened."""

    dataset: str
    label: int
    path: str
    tree: str


@dataclass(frozen=True)
class FileContent:
    """What an opened file holds.

    Attributes
    ----------
    file : InputFile
        Which file.
    uuid : str
        The UUID that ROOT wrote into it: the identity of its events, wherever it lies.
    entries : int
        Entries of its tree.
    """

    file: InputFile
    uuid: str
    entries: int


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


def inspect_file(file: InputFile, environment: Mapping[str, str]) -> FileContent:
    """Open a file and say what it holds.

    Raises
    ------
    InputError
        The file is missing, not readable, not a ROOT file, or has no such tree.
    OSError
        The storage did not answer; worth another attempt.
    """
    with _tree(file, environment) as tree:
        return FileContent(file, str(tree.file.uuid), int(tree.num_entries))


def chunks(content: FileContent, most: int) -> list[Chunk]:
    """Cut a file into ranges of at most `most` entries, all of nearly the same size."""
    pieces = -(-content.entries // most)
    bounds = [content.entries * i // pieces for i in range(pieces + 1)] if pieces else []
    return [Chunk(content.file, content.uuid, start, stop) for start, stop in pairwise(bounds)]


def read(
    chunk: Chunk,
    wanted: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
    optional: Mapping[str, tuple[str, ...]] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> ak.Array:
    """Read the wanted fields of a chunk.

    Parameters
    ----------
    chunk : Chunk
        Which entries of which file.
    wanted : mapping
        Collection to its fields; branches `Collection.Field`, in Delphes' own files or flat.
    environment : mapping
        Variables of the XRootD client.
    optional : mapping, optional
        The same for fields that are read where they are.
    renamed : mapping, optional
        ``Collection.Field`` to the branch that holds it, where it is not called so.

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
    with _tree(chunk.file, environment) as tree:
        if str(tree.file.uuid) != chunk.uuid:
            raise InputError(
                f"{chunk.file.path}: the file was replaced while the run was using it; start again"
            )
        found = {branch.name for branch in tree.itervalues(recursive=True)}

        def branch_of(collection: str, field: str) -> str:
            return (renamed or {}).get(f"{collection}.{field}", f"{collection}.{field}")

        present = dict(wanted)
        for collection, fields in (optional or {}).items():
            if all(branch_of(collection, field) in found for field in fields):
                present[collection] = (*present.get(collection, ()), *fields)
        keys = {branch_of(collection, field) for collection, fields in present.items() for field in fields}
        for key in sorted(keys):
            _require_branch(chunk.file, found, key)
        try:
            arrays = tree.arrays(
                filter_branch=lambda branch: branch.name in keys,
                entry_start=chunk.start, entry_stop=chunk.stop, library="ak", how=dict,
            )  # fmt: skip
        except (OSError, TimeoutError):
            raise
        except Exception as error:
            raise InputError(
                f"{chunk.file.path}: entries {chunk.start} to {chunk.stop} cannot be decoded: "
                f"{type(error).__name__}: {error}"
            ) from error
        by_name = {name.rsplit("/", 1)[-1]: array for name, array in arrays.items()}
        collections = {
            collection: _zip(
                chunk.file, collection, {field: by_name[branch_of(collection, field)] for field in fields}
            )
            for collection, fields in present.items()
        }
        return ak.zip(collections, depth_limit=1)


def _zip(file: InputFile, collection: str, fields: dict[str, ak.Array]) -> ak.Array:
    for field, array in fields.items():
        if array.ndim != 2:
            raise InputError(f"{file.path}: {collection}.{field} is not a list of numbers for each event")
    try:
        return ak.zip(fields, depth_limit=2)
    except ValueError:
        raise InputError(
            f"{file.path}: the branches {', '.join(f'{collection}.{field}' for field in fields)} "
            "do not have equally many entries in every event"
        ) from None


@contextmanager
def _tree(file: InputFile, environment: Mapping[str, str]) -> Iterator[Any]:
    """Open the tree of a file; whatever goes wrong names the file."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        opened = uproot.open(file.path)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(
            f"{file.path}: {_reason(error)}; check the path in fileset.{file.dataset}"
        ) from error
    except OSError as error:
        if "[3011]" in str(error) or "[3010]" in str(error):
            raise InputError(f"{file.path}: {_reason(error)}; check fileset.{file.dataset}") from error
        raise
    except Exception as error:
        raise InputError(f"{file.path}: not a readable ROOT file: {_reason(error)}") from error
    with opened:
        try:
            tree = opened[file.tree]
        except KeyError:
            trees = [name for name, kind in opened.classnames(cycle=False).items() if "Tree" in kind]
            raise InputError(
                f"{file.path}: no tree is called {file.tree}; there are: {', '.join(trees) or 'none'}"
            ) from None
        yield tree


def _require_branch(file: InputFile, found: set[str], key: str) -> None:
    if key not in found:
        near = difflib.get_close_matches(key, sorted(found), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{file.path}: tree {file.tree} has no branch {key}{hint} "
            "(physics.collections and physics.branches set the names)"
        )


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().splitlines()[0]
