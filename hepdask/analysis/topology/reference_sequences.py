"""The published form of a sequence: every event standardised by itself, its padding sorted among the particles.

The published preparation fills an event up to 801 rows with zeros, orders all rows by falling distance from the
lepton (a row of zeros has eta = phi = 0), and scales each feature to zero mean and unit (population) standard
deviation over all 801 rows; a constant feature becomes zero. Networks with published weights want this.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.compiled import compiled
from hepdask.analysis.topology.isolation import wrap
from hepdask.analysis.topology.particle_lists import sort_falling
from hepdask.config.feature_names import PARTICLE

_ETA, _PHI = PARTICLE.index("Eta"), PARTICLE.index("Phi")


def published_sequences(
    features: NDArray, offsets: NDArray[np.int64], lepton: NDArray[np.int64], length: int
) -> NDArray:
    """Fill up, order and standardise events one by one.

    Parameters
    ----------
    features : float (19, n_particles)
        In the order of `feature_names.PARTICLE`, the particles of an event in any order.
    offsets : int64 (n + 1,)
        Particles of event ``i`` are ``offsets[i]:offsets[i + 1]``.
    lepton : int64 (n,)
        Column of each event's lepton.
    length : int
        Rows of a sequence; no event has more particles.

    Returns
    -------
    float (n, length, 19)
        In the type of `features`; computed in float64.
    """
    out = np.empty((len(lepton), length, len(PARTICLE)), features.dtype)
    _fill(out, features, offsets, lepton)
    return out


@compiled()
def _fill(out: NDArray, features: NDArray, offsets: NDArray[np.int64], lepton: NDArray[np.int64]) -> None:
    length = out.shape[1]
    distance, order = np.empty(length), np.empty(length, np.int64)
    for event in range(len(lepton)):
        first, count = offsets[event], offsets[event + 1] - offsets[event]
        eta, phi = np.float64(features[_ETA, lepton[event]]), np.float64(features[_PHI, lepton[event]])
        for row in range(length):
            deta = (features[_ETA, first + row] if row < count else 0.0) - eta
            dphi = wrap(float((features[_PHI, first + row] if row < count else 0.0) - phi))
            distance[row] = np.sqrt(deta * deta + dphi * dphi)
        sort_falling(distance, order, length)
        for feature in range(out.shape[2]):
            mean = 0.0
            for row in range(count):
                mean += features[feature, first + row]
            mean /= length
            squares = (length - count) * mean * mean
            for row in range(count):
                squares += (features[feature, first + row] - mean) ** 2
            deviation = np.sqrt(squares / length)
            scale = 1.0 / deviation if deviation > 0 else 1.0
            for place in range(length):
                value = features[feature, first + order[place]] if order[place] < count else 0.0
                out[event, place, feature] = (value - mean) * scale
