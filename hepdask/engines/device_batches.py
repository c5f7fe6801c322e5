"""Particles that stay on a device: batches are gathered, expanded, scaled and padded there.

A store's columns take 38 bytes a particle, a padded float32 row of 19 features twice that and more for its padding. So
a GPU is given the columns once, and for each batch only where its events begin and how long they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hepdask.analysis.scaling import Scaler
from hepdask.config import feature_names
from hepdask.store import Events

#: Columns of the store that are features as they are, in this order behind energy and momentum.
_AS_THEY_ARE = feature_names.STORED[:9]


class DeviceBatches:
    """The particles of some events, on the device that TensorFlow prefers.

    Parameters
    ----------
    events : Events
        With the columns `feature_names.STORED`.
    scaler : Scaler
        Scaling of the 19 features.
    chosen : sequence of int
        The features the network takes, as places in `feature_names.PARTICLE`.

    Raises
    ------
    tensorflow.errors.ResourceExhaustedError
        The device has no room for them.
    """

    def __init__(self, events: Events, scaler: Scaler, chosen: Sequence[int]) -> None:
        self.events = events
        # a particle more than there are, so that there is one to point at where there are none
        self._columns = {
            name: tf.constant(
                np.append(events.particles[name], 0), tf.float32 if name in _AS_THEY_ARE else tf.int8
            )
            for name in feature_names.STORED
        }
        self._first = tf.constant(events.offsets[:-1])
        self._length = tf.constant(np.diff(events.offsets))
        self._shift, self._factor = (
            tf.constant(np.asarray(numbers, np.float32)[list(chosen)])
            for numbers in (scaler.shift, scaler.factor)
        )
        self._chosen = list(chosen)
        self._gather = tf.function(self._padded, reduce_retracing=True, autograph=False)

    def rows(self, chosen: NDArray[np.int64], longest: int) -> tf.Tensor:
        """Return the sequences of events, padded behind.

        Parameters
        ----------
        chosen : int64 (n,)
            Places of the events.
        longest : int
            Rows of a sequence; no event of these has more particles.

        Returns
        -------
        tf.Tensor
            float32 (n, longest, n_chosen), zero behind the particles: what `hepdask.batches.padding.padded` returns.
        """
        return self._gather(tf.constant(chosen), tf.constant(longest, tf.int64))

    def _padded(self, chosen: tf.Tensor, longest: tf.Tensor) -> tf.Tensor:
        first, length = (tf.gather(of, chosen)[:, tf.newaxis] for of in (self._first, self._length))
        place = tf.range(longest)[tf.newaxis]
        real = place < length
        row = tf.where(real, first + place, 0)
        column = {name: tf.gather(stored, row) for name, stored in self._columns.items()}
        pt, eta, phi = (column[name] for name in ("Pt", "Eta", "Phi"))
        features = [
            pt * tf.cosh(eta), pt * tf.cos(phi), pt * tf.sin(phi), pt * tf.sinh(eta),
            *(column[name] for name in _AS_THEY_ARE),
            *(tf.cast(column["kind"] == kind, tf.float32) for kind in range(5)),
            tf.cast(column["Charge"], tf.float32),
        ]  # fmt: skip
        rows = (tf.stack([features[place] for place in self._chosen], axis=-1) - self._shift) * self._factor
        return tf.where(real[..., tf.newaxis], rows, 0.0)
