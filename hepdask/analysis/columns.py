"""Awkward collections as flat, checked columns with offsets: what the kernels work on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.compiled import compiled


class BadEvent(ValueError):
    """Events hold an unphysical value.

    Attributes
    ----------
    events : int64 (n,)
        Places of all such events in the array that was given, rising.
    what : str
        What is wrong with them.
    """

    def __init__(self, events: NDArray, what: str) -> None:
        more = f" (and {len(events) - 1:,} more events)" if len(events) > 1 else ""
        super().__init__(f"event {events[0]}: {what}{more}")
        self.events = events
        self.what = what


@dataclass(frozen=True)
class Columns:
    """One collection of all events of a chunk.

    Attributes
    ----------
    offsets : int64 (n_events + 1,)
        Objects of event ``i`` are ``offsets[i]:offsets[i + 1]``.
    values : dict of number (n_objects,)
        The columns by field name, in the type they came in.
    """

    offsets: NDArray[np.int64]
    values: dict[str, NDArray]

    def __getitem__(self, field: str) -> NDArray:
        return self.values[field]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Objects in each event, int64 (n_events,)."""
        return np.diff(self.offsets)

    @property
    def events(self) -> NDArray[np.int64]:
        """Index of the event of each object, int64 (n_objects,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def where(self, keep: NDArray[np.bool_]) -> Columns:
        """Keep some of the objects; all events stay."""
        kept = np.concatenate(([0], np.cumsum(keep)))
        return Columns(kept[self.offsets], {name: column[keep] for name, column in self.values.items()})

    def of_events(self, keep: NDArray[np.bool_]) -> Columns:
        """Keep some of the events with all their objects."""
        offsets = np.concatenate(([0], np.cumsum(self.counts[keep])))
        objects = np.repeat(keep, self.counts)
        return Columns(offsets, {name: column[objects] for name, column in self.values.items()})


def columns(events: ak.Array, collection: str, fields: Sequence[str], positive: str | None = None) -> Columns:
    """Flatten one collection; where the input allows it, without copying.

    Parameters
    ----------
    events : ak.Array
        Record array with a jagged record field `collection`.
    collection : str
        Name of the collection.
    fields : sequence of str
        Its fields to take.
    positive : str, optional
        A field whose values must not be negative (a pT or an ET).

    Returns
    -------
    Columns
        The fields in their own types.

    Raises
    ------
    KeyError
        The collection or a field is missing; the nearest name is given.
    BadEvent
        A value is NaN or infinite, or negative in `positive`.
    """
    require(events.fields, collection, "collection")
    record = events[collection]
    for field in fields:
        require(record.fields, field, f"field of {collection}")
    if record[fields[0]].ndim == 1:  # one object an event, as coffea's DelphesSchema gives the missing ET
        record = record[:, np.newaxis]
    counts = ak.to_numpy(ak.num(record[fields[0]], axis=1)).astype(np.int64)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    values = {}
    for field in fields:
        column = np.require(ak.to_numpy(ak.flatten(record[field], axis=1)), requirements=["C", "W"])
        if column.dtype.kind == "f":
            _refuse(offsets, not_finite(column), f"{collection}.{field} is not a finite number")
        values[field] = column
    if positive is not None:
        _refuse(offsets, negative(values[positive]), f"{collection}.{positive} is negative")
    return Columns(offsets, values)


def not_finite(column: NDArray) -> NDArray[np.int64]:
    """Find the places of all values that are NaN or infinite."""
    if _sum_of_differences(column) == 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(~np.isfinite(column))


def negative(column: NDArray) -> NDArray[np.int64]:
    """Find the places of all negative values."""
    if not len(column) or column.min() >= 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(column < 0)


def events_of(offsets: NDArray[np.int64], objects: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the places of the events that some objects belong to, each once."""
    return np.unique(np.searchsorted(offsets, objects, side="right") - 1)


@compiled(fastmath={"reassoc"})
def _sum_of_differences(column: NDArray) -> float:
    """Add up each value less itself: 0 where all are finite, else NaN. Any order will do, so it runs in SIMD."""
    total = 0.0
    for i in range(len(column)):
        total += column[i] - column[i]
    return total


def require(names: Sequence[str], name: str, what: str) -> None:
    """Raise a KeyError with the nearest known name where `name` is not among `names`."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(names)) or 'none'}"
        raise KeyError(f"no {what} is called {name}{hint}")


def _refuse(offsets: NDArray[np.int64], bad: NDArray[np.int64], what: str) -> None:
    if len(bad):
        raise BadEvent(events_of(offsets, bad), what)
