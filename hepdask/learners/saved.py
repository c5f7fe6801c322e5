"""A trained network from its file, ready to score."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from hepdask.batches import Batch
from hepdask.learners import Particles, choose
from hepdask.scaling import Scaler
from hepdask.store import Events

#: Events that are scored at once.
_BATCH = 1024


class SavedNetwork:
    """A network as training saved it, with its inputs and their scaling.

    Parameters
    ----------
    keras_file : bytes
        Contents of the ``.keras`` file.
    record : mapping
        What ``training.json`` holds: the features the network takes and how they were scaled.
    longest : int
        Longest possible particle list.
    """

    def __init__(self, keras_file: bytes, record: Mapping[str, Any], longest: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.keras"
            file.write_bytes(keras_file)
            model = keras.models.load_model(file, compile=False)
        inputs, scaling = record["inputs"], record["scaling"]
        particles = None
        if "particles" in inputs:
            scaler = Scaler.from_json(scaling["particles"]) if scaling["particles"] else None
            particles = Particles(scaler, inputs["particles"], longest)
        self._learner, _ = choose(model, None, particles, kernel=True, threads=1)
        self._classes = int(model.output_shape[-1])
        self.high_level_scaler = Scaler.from_json(scaling["high_level"])
        self.high_level: list[int] = inputs.get("high_level", [])

    def scores(self, events: Events) -> NDArray[np.float32]:
        """Give class probabilities (n, classes) of events."""
        return self.of_batches(
            self._batch(events, start) for start in range(0, len(events.high_level), _BATCH)
        )

    def of_batches(self, batches: Iterable[Batch]) -> NDArray[np.float32]:
        """Give class probabilities of the events of batches, without those of weight 0."""
        scores = [self._learner.scores(batch)[batch.weight > 0] for batch in batches]
        return np.concatenate([*scores, np.empty((0, self._classes), np.float32)])

    def _batch(self, events: Events, start: int) -> Batch:
        chosen = np.arange(start, min(start + _BATCH, len(events.high_level)))
        high_level = self.high_level_scaler(events.high_level[chosen])[:, self.high_level]
        return Batch(
            events, chosen, high_level, events.label[chosen], np.ones(len(chosen), np.float32), len(chosen)
        )
