"""Awkward collections as flat, checked columns with offsets: what the kernels work on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import awkward as ak
import numpy as np
from numpy.typing import NDArray


class BadEvent(ValueError):
    """An event holds a value no physics can be done with.

    Attributes
    ----------
    event : int
        Index of the event in the array that was given.
    """

    def __init__(self, event: int, what: str) -> None:
        super().__init__(f"event {event}: {what}")
        self.event = event
        self.what = what


@dataclass(frozen=True)
class Columns:
    """One collection of all events of a chunk.

    Attributes
    ----------
    offsets : int64 (n_events + 1,)
        Objects of event ``i`` are ``offsets[i]:offsets[i + 1]``.
    values : dict of float64 (n_objects,)
        The columns by field name.
    """

    offsets: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]

    def __getitem__(self, field: str) -> NDArray[np.float64]:
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
    """Flatten one collection.

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
        The fields in float64 (exact for float32 and for integers below 2**53).

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
    layout = ak.to_packed(ak.drop_none(record[list(fields)], axis=1)).layout
    offsets = np.asarray(layout.to_ListOffsetArray64(True).offsets)
    values = {}
    for field in fields:
        column = ak.to_numpy(ak.flatten(record[field])).astype(np.float64)
        _refuse(offsets, ~np.isfinite(column), f"{collection}.{field} is not a finite number")
        values[field] = column
    if positive is not None:
        _refuse(offsets, values[positive] < 0, f"{collection}.{positive} is negative")
    return Columns(offsets, values)


def require(names: Sequence[str], name: str, what: str) -> None:
    """Raise a KeyError with the nearest known name where `name` is not among `names`."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(names)) or 'none'}"
        raise KeyError(f"no {what} is called {name}{hint}")


def _refuse(offsets: NDArray[np.int64], bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise BadEvent(int(np.searchsorted(offsets, first, side="right")) - 1, what)
