"""From the store to rows of physical high-level features, without particles and without a detour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepdask.batches.reading import Reading
from hepdask.store import Store, open_store
from hepdask.store.reader import Sample


@dataclass(frozen=True)
class Rows:
    """What trees learn from.

    Attributes
    ----------
    features : float32 (n, n_features)
        High-level features in physical values, not scaled.
    label : int64 (n,)
        Class.
    weight : float32 (n,)
        Weight of the class.
    """

    features: NDArray[np.float32]
    label: NDArray[np.int64]
    weight: NDArray[np.float32]


def load_rows(
    store: Store | Path,
    sample: Sample,
    columns: Sequence[int],
    class_weights: NDArray[np.floating] | None = None,
    parts: list[int] | None = None,
) -> Rows:
    """Load events of a store.

    Parameters
    ----------
    store : Store or Path
        The store, or where it is.
    sample : str
        As in `Store.events`.
    columns : sequence of int
        Which high-level features, in this order.
    class_weights : float (n_classes,), optional
        Weight of each class; default 1.
    parts : list of int, optional
        The events of these parts alone; default all.

    Raises
    ------
    TrainingError
        A feature is not a finite number; the message names file and entry.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    events = Reading(opened, sample, np.inf, particles=False).load(parts)
    weights = np.ones(len(opened.classes)) if class_weights is None else class_weights
    features = np.ascontiguousarray(events.high_level[:, list(columns)], np.float32)
    return Rows(features, events.label, weights[events.label].astype(np.float32))


def shared_out(counts: NDArray[np.int64], shares: int) -> list[list[int]]:
    """Divide the parts of a store into runs of about as many events each.

    Parameters
    ----------
    counts : int64 (n_parts,)
        Events of each part.
    shares : int
        Most runs.

    Returns
    -------
    list of list of int
        Every part that has events, in order; no run is empty.
    """
    parts = np.flatnonzero(counts)
    middle = np.cumsum(counts[parts]) - counts[parts] / 2
    share = (middle * shares / max(1, counts.sum())).astype(int)
    runs = [parts[share == number].tolist() for number in range(shares)]
    return [run for run in runs if run]
