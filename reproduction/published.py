"""The published numbers, and the published networks on events that are new to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepdask import models
from hepdask.analysis.scaling import Scaler
from hepdask.batches.batch import Batches
from hepdask.batches.reading import Reading
from hepdask.config import Models
from hepdask.config.feature_names import HIGH_LEVEL, PARTICLE
from hepdask.models.weights import load_weights
from hepdask.store import Store

#: Accuracy, and AUC of QCD, tt̄ and W against the rest (Migliorini et al. 2019 and the notebooks that go with it).
NUMBERS = {
    "HLF": ("0.915", "0.987", "0.985", "0.981"),
    "XGBoost": ("0.917–0.920", "", "", ""),
    "random forest": ("0.908", "", "", ""),
    "particle sequence": ("", "", "", ""),
    "inclusive, GRU": ("0.956–0.960", "0.9950", "0.9969", "0.9947"),
    "inclusive, LSTM": ("0.956–0.960", "0.9952", "0.9968", "0.9947"),
}


#: Features whose greatest value grows with the sample, and the power of an energy that they have in `reference`.
TAILS = {"HT": 1, "MET": 1, "LepPt": 1, "MT": 2}


def scores(weights: Path, store: Store, wider: float = 1.0) -> NDArray[np.float32]:
    """Score the training events of a store with a published inclusive network.

    Parameters
    ----------
    weights : Path
        A ``.keras`` or ``.h5`` file.
    store : Store
        In the `reference` convention: sequences of 801 rows as the network was trained on.
    wider : float
        Take the ranges of energies so many times as wide as they are in the store.

    Returns
    -------
    float32 (n, 3)
        Of the sample ``"train"``. The high-level features are scaled to [0, 1] over `wider` times the ranges of the
        store, since those of the published sample are not known.
    """
    from hepdask.engines.choice import choose_engine
    from hepdask.engines.engine import Particles

    settings = Models()
    inputs: dict[str, list[int]] = models.inputs("inclusive", settings, HIGH_LEVEL)
    network = models.build("inclusive", settings, inputs, len(store.classes))
    load_weights(network, weights)
    particles = Particles(store.particle_scaler, list(range(len(PARTICLE))), store.max_particles)
    engine, _ = choose_engine(network, None, particles, kernel=True, threads=1)
    reading = Reading(store, "train", 2.0**31)
    scaler = store.high_level_scaler
    powers = np.array([TAILS.get(name, 0) for name in HIGH_LEVEL])
    scaler = Scaler(scaler.shift, (scaler.factor / wider**powers).astype(np.float32))
    batches = Batches(reading, scaler, inputs["high_level"], 512)
    found: Sequence[NDArray[np.float32]] = [engine.scores(batch) for batch in batches.in_order()]
    return np.concatenate(found)
