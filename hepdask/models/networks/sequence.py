"""The particle-sequence classifier: a recurrent network over the particles (Migliorini et al. 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hepdask.config import Sequence
from hepdask.models.networks.particle_summary import summary

if TYPE_CHECKING:
    import keras


def build(settings: Sequence, widths: Mapping[str, int], classes: int) -> keras.Model:
    """Build the network; rows of zeros in the sequence are padding and leave the state as it is.

    Parameters
    ----------
    settings : Sequence
        Cell, units and dropout.
    widths : mapping of str to int
        Number of features of each input: ``particles``, 19 in the paper.
    classes : int
        Length of the output.

    Returns
    -------
    keras.Model
        ``{"particles": (n, longest, particle_features)}`` to (n, classes), float32.
    """
    import keras

    particles = keras.Input((None, widths["particles"]), name="particles")
    x = keras.layers.Dropout(settings.dropout)(summary(settings, particles))
    scores = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="scores")(x)
    return keras.Model({"particles": particles}, scores, name="sequence")
