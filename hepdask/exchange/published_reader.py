"""Reading the published layout back: `HLF_input`, `GRU_input` and `encoded_label` from Parquet, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from hepdask.config.feature_names import PARTICLE
from hepdask.errors import InputError
from hepdask.exchange.published_layout import HIGH_LEVEL, LABEL, SEQUENCE

#: Events of a block; padded, 801 x 19, they take 31 MB.
BLOCK = 512

#: Bytes of a file read at once for its digest.
_PIECE = 16 << 20

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
    file = _opened(path)
    missing = [name for name in (HIGH_LEVEL, SEQUENCE, LABEL) if name not in file.schema_arrow.names]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}, but {', '.join(file.schema_arrow.names)}; the published files "
            f"hold {HIGH_LEVEL}, {SEQUENCE} and {LABEL}"
        )
    _check_sizes(file, path, {HIGH_LEVEL: features, SEQUENCE: length * len(PARTICLE), LABEL: classes})
    start = 0
    for batch in _batches(file, path):
        at = f"{path}: rows {start} to {start + len(batch) - 1}"
        label = _vectors(batch[LABEL], classes, f"{at}: {LABEL}")
        if (np.abs(label - (label > 0.5)) > _CLOSE).any() or ((label > 0.5).sum(axis=1) != 1).any():
            raise InputError(f"{at}: {LABEL} does not mark one of {classes} classes; check analysis.classes")
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
    """Digest of what tells files apart: all of their bytes.

    Raises
    ------
    InputError
        It is no Parquet file, or not all of one.
    """
    _opened(path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file: {_first_line(error)}") from None


def _batches(file: pq.ParquetFile, path: Path) -> Iterator[Any]:
    """Read blocks of rows; a file that is damaged is named."""
    batches = file.iter_batches(BLOCK, columns=[HIGH_LEVEL, SEQUENCE, LABEL])
    row = 0
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException, MemoryError) as error:
            raise InputError(
                f"{path}: damaged at row {row} or after it ({_first_line(error)}); get the file again"
            ) from None
        if batch is None:
            break
        row += len(batch)
        yield batch
    if row != file.metadata.num_rows:
        raise InputError(f"{path}: has {row} rows and says {file.metadata.num_rows}; get the file again")


def _check_sizes(file: pq.ParquetFile, path: Path, expected: dict[str, int]) -> None:
    """Refuse columns that say they hold more than there can be, before anything is made as large as that."""
    for place in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(place)
        for number in range(group.num_columns):
            column = group.column(number)
            most = expected.get(column.path_in_schema.split(".")[0])
            if most is not None and column.num_values > most * group.num_rows:
                raise InputError(
                    f"{path}: {column.path_in_schema} holds {column.num_values} numbers in {group.num_rows} rows, and "
                    f"at most {most} in each are expected"
                )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    types = np.asarray(column.field("type"))
    if column.null_count or not np.isin(types, (0, 1)).all():
        raise InputError(f"{where} holds gaps, or vectors that are neither dense nor sparse")
    dense = types == 1
    if dense.all():
        return _vectors(column.field("values"), width, where)
    found = np.zeros((len(column), width), np.float32)
    found[dense] = _vectors(column.field("values").filter(pa.array(dense)), width, where)
    sparse = column.filter(pa.array(~dense))
    indices, values = sparse.field("indices"), sparse.field("values")
    if (np.asarray(sparse.field("size")) != width).any():
        raise InputError(f"{where} does not hold {width} numbers in each row")
    lists = indices.null_count == values.null_count == 0 and pa.types.is_integer(indices.type.value_type)
    counts = np.asarray(pc.list_value_length(indices)) if lists else np.empty(0, np.int32)
    if not lists or (counts != np.asarray(pc.list_value_length(values))).any():
        raise InputError(f"{where} holds sparse vectors without an index for each number")
    flat = indices.flatten()
    places = np.asarray(flat).astype(np.int64) if not flat.null_count else np.full(len(flat), -1)
    cells = np.repeat(np.flatnonzero(~dense), counts) * width + places
    if ((places < 0) | (places >= width)).any() or len(np.unique(cells)) < len(cells):
        raise InputError(
            f"{where} holds sparse vectors with a repeated index, or one outside 0 to {width - 1}"
        )
    found.reshape(-1)[cells] = _numbers(values.flatten(), where)
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
            f"{where} holds {flat.type}{' with gaps' if flat.null_count else ''}, not only numbers"
        )
    return np.asarray(flat).astype(np.float32)
