"""Events as Parquet, jagged or in the published layout, for Spark, pandas, awkward and whatever else reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hepdask.analysis.topology import expand_columns
from hepdask.exchange.published_layout import published_columns
from hepdask.store import Events, Store

SUFFIX = ".parquet"


def jagged_table(store: Store, events: Events) -> pa.Table:
    """Give events as a table with one row an event and nothing padded.

    Parameters
    ----------
    store : Store
        Where they come from.
    events : Events
        Some of its events.

    Returns
    -------
    pa.Table
        ``particle_Energy`` ... (list of float, lepton last), ``hlf_HT`` ... (float), physical values in GeV, mm and
        rad; ``label`` (int), ``dataset`` and ``file`` (string), ``entry`` (int).
    """
    columns = {
        f"particle_{n}": _lists(c, events.offsets) for n, c in expand_columns(events.particles).items()
    }
    for name, column in zip(store.features["hlf"], events.high_level.T, strict=True):
        columns[f"hlf_{name}"] = pa.array(np.ascontiguousarray(column))
    columns["label"] = pa.array(events.label)
    parts, which = np.unique(events.part, return_inverse=True)
    for name in ("dataset", "file"):
        words = pa.array([store.parts[part][name] for part in parts], pa.string())
        columns[name] = words.take(pa.array(which))
    return _table(columns | {"entry": pa.array(events.entry)})


def padded_table(store: Store, events: Events) -> pa.Table:
    """Give events as a table in the published layout, with lists of float in place of Spark's vectors."""
    return _table({name: _nested(values) for name, values in published_columns(store, events).items()})


class ParquetFile:
    """One file that is being written; tables become its row groups.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> int:
        """Append rows; return their size in memory [bytes]."""
        if self._writer is None:
            words = [field.name for field in table.schema if pa.types.is_string(field.type)]
            self._writer = pq.ParquetWriter(
                self._path, table.schema, compression="zstd", use_dictionary=words
            )
        self._writer.write_table(table, row_group_size=table.num_rows)
        return int(table.nbytes)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def count_rows(path: Path) -> int:
    """Count the rows of a file by its footer."""
    return int(pq.read_metadata(path).num_rows)


def _table(columns: dict[str, pa.Array]) -> pa.Table:
    """Make a table in which nothing can be missing."""
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.table(columns, schema=pa.schema(fields))


def _lists(values: NDArray | pa.Array, offsets: NDArray[np.int64]) -> pa.Array:
    """Cut flat values into lists."""
    values = pa.array(values)
    kind = pa.list_(pa.field("element", values.type, nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=kind)


def _nested(values: NDArray) -> pa.Array:
    """Turn an array of any dimension into lists of lists."""
    nested = values.reshape(-1)
    for axis in range(values.ndim - 1, 0, -1):
        rows = int(np.prod(values.shape[:axis]))
        nested = _lists(nested, np.arange(rows + 1) * values.shape[axis])
    return nested
