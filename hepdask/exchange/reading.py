"""Reading the published layout back: `HLF_input`, `GRU_input` and `encoded_label` from Parquet, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hepdask.errors import InputError
from hepdask.exchange.published import HIGH_LEVEL, LABEL, SEQUENCE
from hepdask.names import PARTICLE

#: Events of a block; padded, 801 x 19, they take 31 MB.
BLOCK = 512

#: How far a one-hot label may be from 0 and 1.
_CLOSE = 1e-6


@dataclass(frozen=True)
class Block:
    """Some rows of a file.

    Attributes
    ----------
    start : int
        The first of them.
    high_level : float32 (n, features)
        As they stand in the file: scaled.
    sequences : float32 (n, length, 19)
        The same.
    label : int64 (n,)
        Class.
    """

    start: int
    high_level: NDArray[np.float32]
    sequences: NDArray[np.float32]
    label: NDArray[np.int64]


def blocks(path: Path, features: int, length: int, classes: int) -> Iterator[Block]:
    """Read a file in the published layout.

    Parameters
    ----------
    path : Path
        A Parquet file; vectors are those of Spark, dense or sparse, or lists.
    features, length, classes : int
        High-level features, rows of a sequence and classes that are expected.

    Raises
    ------
    InputError
        The file holds something else; the message names the column and the row.
    """
    file = pq.ParquetFile(path)
    missing = [name for name in (HIGH_LEVEL, SEQUENCE, LABEL) if name not in file.schema_arrow.names]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}, but {', '.join(file.schema_arrow.names)}; the published files "
            f"hold {HIGH_LEVEL}, {SEQUENCE} and {LABEL}"
        )
    start = 0
    for batch in file.iter_batches(BLOCK, columns=[HIGH_LEVEL, SEQUENCE, LABEL]):
        at = f"{path}: rows {start} to {start + len(batch) - 1}"
        label = _vectors(batch[LABEL], classes, f"{at}: {LABEL}")
        if (np.abs(label - (label > 0.5)) > _CLOSE).any() or ((label > 0.5).sum(axis=1) != 1).any():
            raise InputError(f"{at}: {LABEL} does not say one class of {classes}; check physics.classes")
        high_level = _vectors(batch[HIGH_LEVEL], features, f"{at}: {HIGH_LEVEL}")
        sequences = _sequences(batch[SEQUENCE], length, f"{at}: {SEQUENCE}")
        for name, values in ((HIGH_LEVEL, high_level), (SEQUENCE, sequences)):
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                raise InputError(
                    f"{path}: row {start + int(np.argmin(finite))}: {name} holds a NaN or an infinity"
                )
        yield Block(start, high_level, sequences, label.argmax(axis=1))
        start += len(batch)


def identity(path: Path) -> str:
    """Digest of what tells files apart: the footer, which holds sizes, places and ranges of all columns.

    Raises
    ------
    InputError
        It is no Parquet file, or not all of one.
    """
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from None
    with path.open("rb") as file:
        file.seek(-8, 2)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, 2)
        return hashlib.blake2b(file.read(size), digest_size=16).hexdigest()


def _sequences(column: Any, length: int, where: str) -> NDArray[np.float32]:
    rows = _flat(column, length, where)
    return _vectors(rows, len(PARTICLE), where).reshape(len(column), length, len(PARTICLE))


def _vectors(column: Any, width: int, where: str) -> NDArray[np.float32]:
    """Give vectors of one width as rows."""
    if not pa.types.is_struct(column.type):
        return _numbers(_flat(column, width, where), where).reshape(len(column), width)
    fields = {column.type.field(place).name for place in range(column.type.num_fields)}
    if not {"type", "size", "indices", "values"} <= fields:
        raise InputError(f"{where} holds structures of {', '.join(sorted(fields))}, not Spark's vectors")
    dense = np.asarray(column.field("type")) == 1
    if dense.all():
        return _vectors(column.field("values"), width, where)
    found = np.zeros((len(column), width), np.float32)
    found[dense] = _vectors(column.field("values").filter(pa.array(dense)), width, where)
    sparse = column.filter(pa.array(~dense))
    indices, values = sparse.field("indices"), sparse.field("values")
    counts = np.asarray(pc.list_value_length(indices))
    if (np.asarray(sparse.field("size")) != width).any():
        raise InputError(f"{where} does not hold {width} numbers in each row")
    rows = np.repeat(np.flatnonzero(~dense), counts)
    found[rows, np.asarray(indices.flatten())] = _numbers(values.flatten(), where)
    return found


def _flat(column: Any, width: int, where: str) -> Any:
    """Take lists of one length apart."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise InputError(f"{where} holds {column.type}, not lists of numbers")
    if column.null_count or not (np.asarray(pc.list_value_length(column)) == width).all():
        raise InputError(f"{where} does not hold {width} in each row")
    return column.flatten()


def _numbers(flat: Any, where: str) -> NDArray[np.float32]:
    if flat.null_count or not pa.types.is_floating(flat.type):
        raise InputError(
            f"{where} holds {flat.type}{' with gaps' if flat.null_count else ''}, not numbers alone"
        )
    return np.asarray(flat).astype(np.float32)
