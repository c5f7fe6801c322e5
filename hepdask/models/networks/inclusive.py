"""The inclusive classifier: a recurrent network over the particles, joined by the high-level features.

Migliorini et al. 2019, section 4.3: GRU(50), dropout 0.2 on both branches, Dense(25), softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hepdask.config import Inclusive
from hepdask.models.networks.particle_summary import summary

if TYPE_CHECKING:
    import keras


def build(settings: Inclusive, widths: Mapping[str, int], classes: int) -> keras.Model:
    """Build the network; rows of zeros in the sequence are padding and leave the state as it is.

    Parameters
    ----------
    settings : Inclusive
        Cell, units and dropout.
    widths : mapping of str to int
        Number of features of each input: ``particles`` and ``high_level``, 19 and 14 in the paper.
    classes : int
        Length of the output.

    Returns
    -------
    keras.Model
        ``{"particles": (n, longest, particle_features), "high_level": (n, features)}`` to (n, classes), float32.
    """
    import keras

    particles = keras.Input((None, widths["particles"]), name="particles")
    high_level = keras.Input((widths["high_level"],), name="high_level")
    sequence = keras.layers.Dropout(settings.dropout)(summary(settings, particles))
    event = keras.layers.Dropout(settings.dropout)(high_level)
    x = keras.layers.Concatenate()([sequence, event])
    x = keras.layers.Dense(settings.dense, activation="relu")(x)
    scores = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="scores")(x)
    return keras.Model({"particles": particles, "high_level": high_level}, scores, name="inclusive")
