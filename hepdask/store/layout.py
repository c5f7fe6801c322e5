"""What a store looks like on disk; `docs/store.md` describes it for people.

::

    STORE/zarr.json              group; attribute `hepdask`: schema and identity (what must not be mixed)
    STORE/manifest.json          written last: the parts that make up the store, scalings, lost input
    STORE/inputs.json            what the input files held when they were last opened
    STORE/lost.json              what a run that failed could not read
    STORE/lock.json              who is writing
    STORE/parts/NAME.zip         group in an archive, one for each chunk of input, written by one task
        offsets      int64   (n + 1,)     particles of event i are offsets[i]:offsets[i + 1]
        entry        int64   (n,)         entry in the input file
        group        int64   (n,)         events of one group stay in one split
        fingerprint  uint64  (n,)         hash of what is stored of an event: the same event has it in other files too
        high_level   float32 (n, 14 or more)   names.HIGH_LEVEL, then the user's own
        Pt, Eta, ... float32 (particles,) and kind, Charge int8: names.STORED

A store of imported events keeps in place of the last ones the rows of sequences as they were given:
`feature_names.PARTICLE`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from hepdask.config import feature_names

SCHEMA = 5

#: Type of each flat particle column.
PARTICLE_DTYPES = {name: "int8" if name in ("kind", "Charge") else "float32" for name in feature_names.STORED}

#: The same of imported events: rows of finished sequences, padding and all.
GIVEN_DTYPES = dict.fromkeys(feature_names.PARTICLE, "float32")

_EVENT_DTYPES = {
    "offsets": "int64", "entry": "int64", "group": "int64", "fingerprint": "uint64", "high_level": "float32",
}  # fmt: skip

#: All arrays of a part and their types.
DTYPES = _EVENT_DTYPES | PARTICLE_DTYPES
IMPORTED_DTYPES = _EVENT_DTYPES | GIVEN_DTYPES

ROOT = "zarr.json"
MANIFEST = "manifest.json"
INPUTS = "inputs.json"
LEDGER = "lost.json"
PARTS = "parts"
SUFFIX = ".zip"


def part_file(store: Path, name: str) -> Path:
    """Give the path of a part."""
    return store / PARTS / f"{name}{SUFFIX}"


def shapes(events: int, particles: int, width: int, imported: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Say of which type and shape each array of a part is.

    Parameters
    ----------
    events, particles : int
        How many the part holds.
    width : int
        High-level features.
    imported : bool
        Whether its events are imported.

    Returns
    -------
    dict of (str, tuple of int)
    """
    dtypes = IMPORTED_DTYPES if imported else DTYPES
    found = {
        name: (dtype, (events,) if name in _EVENT_DTYPES else (particles,)) for name, dtype in dtypes.items()
    }
    return found | {"offsets": ("int64", (events + 1,)), "high_level": ("float32", (events, width))}


def checksum(values: NDArray) -> str:
    """Digest of an array's bytes, XXH3-128 in hex: against damage, not against forgers."""
    contiguous = np.ascontiguousarray(values)
    return xxhash.xxh3_128_hexdigest(contiguous.data if contiguous.size else b"")
