"""The dense classifier on the 14 high-level features (Migliorini et al. 2019, section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hepdask.config import HLF
from hepdask.features.names import HIGH_LEVEL

if TYPE_CHECKING:
    import keras

INPUTS: tuple[str, ...] = ("high_level",)


def build(settings: HLF, classes: int) -> keras.Model:
    """Stack dense layers with ReLU (50, 20, 10 in the paper) under a softmax.

    Parameters
    ----------
    settings : HLF
        Units of the hidden layers.
    classes : int
        Length of the output.

    Returns
    -------
    keras.Model
        ``{"high_level": (n, 14)}`` to (n, classes), float32.
    """
    import keras

    high_level = keras.Input((len(HIGH_LEVEL),), name="high_level")
    x = high_level
    for units in settings.hidden:
        x = keras.layers.Dense(units, activation="relu")(x)
    scores = keras.layers.Dense(classes, activation="softmax", name="scores")(x)
    return keras.Model({"high_level": high_level}, scores, name="hlf")
