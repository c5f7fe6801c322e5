"""The layout of the published datasets: `HLF_input`, `GRU_input` and `encoded_label`, one row an event.

As in the Parquet and TFRecord files of Migliorini et al. (2019), of fixed shapes and already scaled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.topology import sequences
from hepdask.store import Events, Store

HIGH_LEVEL, SEQUENCE, LABEL = "HLF_input", "GRU_input", "encoded_label"


def published_columns(store: Store, events: Events) -> dict[str, NDArray[np.float32]]:
    """Bring events into the published layout.

    Parameters
    ----------
    store : Store
        Where they come from; it holds the scalings.
    events : Events
        Some of its events.

    Returns
    -------
    dict of float32
        ``HLF_input`` (n, 14), or wider by the user's own features, scaled to [0, 1] over the training split;
        ``GRU_input`` (n, 801, 19), or as long as the configured caps allow, as `Store.sequence` gives it;
        ``encoded_label`` (n, classes), one-hot.
    """
    particles = sequences(events.particles, events.offsets, store.max_particles, store.particle_scaler)
    return {
        HIGH_LEVEL: store.high_level_scaler(events.high_level),
        SEQUENCE: particles,
        LABEL: np.eye(len(store.classes), dtype=np.float32)[events.label],
    }
