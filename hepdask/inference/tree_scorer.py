"""Trained trees from their file, ready to score."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hepdask.errors import InputError
from hepdask.models.record import ModelRecord
from hepdask.models.trees.fitted import load_trees
from hepdask.store import Events


class TreeScorer:
    """Trees as training saved them; a `Scorer`.

    Parameters
    ----------
    file : bytes
        What `Fitted.file` holds.
    record : ModelRecord
        What ``training.json`` holds: the features they take, and the classes.
    where : str or Path
        The file, for messages.

    Raises
    ------
    InputError
        The file holds no trees, or not those of what the record says.
    """

    def __init__(self, file: bytes, record: ModelRecord, where: str | Path) -> None:
        self._columns = list(record.inputs["high_level"])
        if (record.file == "model.npz") != file.startswith(b"PK"):
            raise InputError(f"{where}: not what its name says")
        try:
            self.trees = load_trees(file)
            self.trees.check(len(self._columns), len(record.classes))
        except (ValueError, KeyError, TypeError, OSError, BadZipFile) as error:
            words = str(error).strip().partition("\n")[0]
            raise InputError(f"{where}: cannot be read as trees ({words}); train them again") from None

    def scores(self, events: Events) -> NDArray[np.float32]:
        """Compute class probabilities, float32 (n, classes)."""
        return self.trees.scores(np.ascontiguousarray(events.high_level[:, self._columns]))
