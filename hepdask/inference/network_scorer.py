"""A trained network from its file, ready to score."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepdask.batches.batch import Batch
from hepdask.engines.choice import choose_engine
from hepdask.engines.engine import Particles
from hepdask.errors import InputError
from hepdask.models.network_file import load_network
from hepdask.models.record import ModelRecord
from hepdask.store import Events

#: Events that are scored at once.
_BATCH = 1024


class NetworkScorer:
    """A network as training saved it, with its inputs and their scaling; a `Scorer`.

    Parameters
    ----------
    keras_file : bytes
        Contents of the ``.keras`` file.
    record : ModelRecord
        What ``training.json`` holds: the features the network takes and how they were scaled.
    where : str or Path
        The file, for messages.

    Raises
    ------
    InputError
        The file is no network of this project, or not one of what the record says.
    """

    def __init__(self, keras_file: bytes, record: ModelRecord, where: str | Path) -> None:
        model = load_network(keras_file, where)
        inputs, scaling = record.inputs, record.scaling
        self._classes = len(record.classes)
        found = {one.name: int(one.shape[-1]) for one in model.inputs}, model.output_shape
        wanted = {name: len(places) for name, places in inputs.items()}, (None, self._classes)
        if found != wanted:
            raise InputError(
                f"{where}: a network from {found[0]} features to scores of shape {found[1]}; the record next to it "
                f"says {wanted[0]} and {wanted[1]}"
            )
        particles = None
        if "particles" in inputs:
            scaler = scaling.particles.scaler() if scaling.particles else None
            particles = Particles(scaler, list(inputs["particles"]), record.analysis.max_particles)
        self._engine, _ = choose_engine(model, None, particles, kernel=True, threads=1)
        self.high_level_scaler = scaling.high_level.scaler()
        self.high_level = list(inputs.get("high_level", ()))

    def scores(self, events: Events) -> NDArray[np.float32]:
        """Compute class probabilities, float32 (n, classes)."""
        return self.of_batches(
            self._batch(events, start) for start in range(0, len(events.high_level), _BATCH)
        )

    def of_batches(self, batches: Iterable[Batch]) -> NDArray[np.float32]:
        """Compute class probabilities of the events of batches, without those of weight 0, float32 (n, classes)."""
        scores = [self._engine.scores(batch)[batch.weight > 0] for batch in batches]
        return np.concatenate([*scores, np.empty((0, self._classes), np.float32)])

    def _batch(self, events: Events, start: int) -> Batch:
        chosen = np.arange(start, min(start + _BATCH, len(events.high_level)))
        high_level = self.high_level_scaler(events.high_level[chosen])[:, self.high_level]
        return Batch(
            events, chosen, high_level, events.label[chosen], np.ones(len(chosen), np.float32), len(chosen)
        )
