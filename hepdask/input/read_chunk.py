"""Reading a range of entries of a ROOT file into one array."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import awkward as ak

from hepdask.config import XRootD
from hepdask.errors import FieldNotFound, InputError
from hepdask.input.branches import Fields, branch_keys, branch_names, branch_of, is_rntuple, missing_branches
from hepdask.input.identity import layout_digest
from hepdask.input.inflate import Inflating
from hepdask.input.input_file import Chunk
from hepdask.input.opening import open_tree, raise_if_disconnected

#: What decompresses, in reads of this module only.
_INFLATING = Inflating()


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
    with open_tree(chunk.file, address, xrootd or XRootD()) as tree:
        if layout_digest(tree) != chunk.identity.layout:
            raise InputError(
                f"{address}: not the file that was opened before (its UUID was {chunk.identity.uuid}): it was replaced "
                "or changed while the run was using it; start again"
            )
        found = branch_names(tree)
        present = dict(wanted)
        for collection, fields in (optional or {}).items():
            if all(branch_of(renamed, collection, field) in found for field in fields):
                present[collection] = (*present.get(collection, ()), *fields)
        keys = branch_keys(present, renamed)
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
            raise_if_disconnected(error, address)
            raise InputError(
                f"{address}: entries {chunk.start} to {chunk.stop} cannot be decoded: "
                f"{type(error).__name__}: {error}"
            ) from error
        collections = {
            collection: _zip(
                address,
                collection,
                {field: by_name[branch_of(renamed, collection, field)] for field in fields},
            )
            for collection, fields in present.items()
        }
        return ak.zip(collections, depth_limit=1)


def _arrays(tree: Any, keys: set[str], start: int, stop: int) -> dict[str, ak.Array]:
    """Read some branches, by name."""
    if is_rntuple(tree):
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
            "do not have the same number of entries in every event"
        ) from None
