"""ROOT files in Delphes' layout, written by uproot: whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import awkward as ak
import uproot

from hepdask.files.atomic import renamed_to
from hepdask.files.outputs import writing

TREE = "Delphes"
PROVENANCE = "hepdask"

# Any fixed number will do: it keeps our UUIDs apart from other version-5 ones.
_NAMESPACE = uuid.UUID("6d0a54ac-2f5e-5f0c-9f3b-0a9f0a1c6a51")


def write_events(
    path: str | os.PathLike[str], blocks: Iterable[ak.Array], provenance: dict[str, Any], uuid_seed: str
) -> int:
    """Write blocks of events to a tree ``Delphes``, one cluster of baskets a block.

    The file appears under its name only when it is complete and on the disk. The same blocks and
    ``uuid_seed`` give the same events and the same UUID; the bytes differ by ROOT's time stamps.

    Parameters
    ----------
    path : str or path
        Of the ROOT file; an existing file is replaced. Its folder must exist.
    blocks : iterable of ak.Array
        From `hepdask.simulation.simulate_block`; taken one at a time.
    provenance : dict
        Written as JSON to the object ``hepdask``; see `read_provenance`.
    uuid_seed : str
        What the UUID is made from: name everything that the events depend on.

    Returns
    -------
    int
        Number of events written.

    Raises
    ------
    ValueError
        If there are no blocks.
    OutputError
        If the file cannot be written; no partial file is left.
    """
    path = Path(path)
    with renamed_to(path) as partial:
        events = _write(partial, blocks, provenance, uuid_seed)
        with writing(path), open(partial, "rb+") as file:
            os.fsync(file.fileno())
    return events


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read what `write_events` was told about where the events come from.

    Parameters
    ----------
    path : str or path
        A ROOT file.

    Returns
    -------
    dict or None
        None for a file that something else wrote.
    """
    with uproot.open(os.fspath(path)) as file:
        if PROVENANCE not in file:
            return None
        return json.loads(str(file[PROVENANCE]))


def _write(partial: Path, blocks: Iterable[ak.Array], provenance: dict[str, Any], uuid_seed: str) -> int:
    events = 0
    with uproot.recreate(partial, uuid_function=lambda: uuid.uuid5(_NAMESPACE, uuid_seed)) as file:
        tree = None
        for block in blocks:
            if tree is None:
                tree = file.mktree(
                    TREE,
                    {name: ak.type(block[name]).content for name in block.fields},
                    counter_name=lambda collection: f"{collection}_size",
                    field_name=lambda collection, field: f"{collection}.{field}" if collection else field,
                )
            with writing(partial):  # taking the next block may fail for other reasons
                tree.extend({name: block[name] for name in block.fields})
            events += len(block)
        if tree is None:
            raise ValueError("there are no events to write: no block was given")
        file[PROVENANCE] = json.dumps(provenance, sort_keys=True)
    return events
