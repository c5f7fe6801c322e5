"""Jagged input against the published sequences: the same network, events and folds, in both conventions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepdask.store import Store


@dataclass(frozen=True)
class Common:
    """Events that are in the training samples of two stores.

    Attributes
    ----------
    first, second : int64 (n,)
        Their places in the sample ``"train"`` of each.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]


def common(first: Store, second: Store) -> Common:
    """Find the events that both stores train on: the conventions select, and so balance, a little differently."""
    rows = [_identities(store) for store in (first, second)]
    both = np.concatenate(rows)
    _, number = np.unique(both, return_inverse=True)
    mine, theirs = np.split(number.reshape(-1), [len(rows[0])])
    _, at_first, at_second = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
    order = np.argsort(at_first)
    return Common(at_first[order], at_second[order])


def _identities(store: Store) -> NDArray[np.str_]:
    events = store.events("train", particles=False)
    files = np.array([part["file"] for part in store.parts])
    return np.char.add(np.char.add(files[events.part], "#"), events.entry.astype(str))
