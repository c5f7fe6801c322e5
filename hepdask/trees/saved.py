"""Trained trees as scorers of events, as `hepdask.learners.saved` is of networks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepdask.store import Events
from hepdask.trees.fitted import load_trees


class SavedTrees:
    """Trees from their file.

    Parameters
    ----------
    file : bytes
        What `Fitted.file` holds.
    columns : list of int
        High-level features they take.
    """

    def __init__(self, file: bytes, columns: list[int]) -> None:
        self._trees = load_trees(file)
        self._columns = columns

    def scores(self, events: Events) -> NDArray[np.float32]:
        """Give class probabilities (n, classes)."""
        return self._trees.scores(np.ascontiguousarray(events.high_level[:, self._columns]))
