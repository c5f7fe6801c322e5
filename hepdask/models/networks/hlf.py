"""The dense classifier on the 14 high-level features (Migliorini et al. 2019, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hepdask.config import HLF

if TYPE_CHECKING:
    import keras


def build(settings: HLF, widths: Mapping[str, int], classes: int) -> keras.Model:
    """Stack dense layers (50, 20, 10 with ReLU in the paper) under a softmax.

    Parameters
    ----------
    settings : HLF
        Units, activation and dropout of the hidden layers.
    widths : mapping of str to int
        Number of features of each input: ``high_level``, 14 in the paper.
    classes : int
        Length of the output.

    Returns
    -------
    keras.Model
        ``{"high_level": (n, features)}`` to (n, classes), float32.
    """
    import keras

    high_level = keras.Input((widths["high_level"],), name="high_level")
    x = high_level
    for units in settings.hidden:
        x = keras.layers.Dense(units, activation=settings.activation)(x)
        if settings.dropout:
            x = keras.layers.Dropout(settings.dropout)(x)
    scores = keras.layers.Dense(classes, activation="softmax", name="scores")(x)
    return keras.Model({"high_level": high_level}, scores, name="hlf")
