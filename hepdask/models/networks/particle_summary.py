"""What reads an event's particles and sums them up in one vector: GRU, LSTM, or a small transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hepdask.config import Sequence

if TYPE_CHECKING:
    import keras

_HEADS = 2
_BLOCKS = 2


def summary(settings: Sequence, particles: keras.KerasTensor) -> keras.KerasTensor:
    """Sum up the particles of each event.

    Parameters
    ----------
    settings : Sequence
        Kind of cell, and its units.
    particles : KerasTensor (n, longest, n_features)
        Rows of zeros are padding and take no part.

    Returns
    -------
    KerasTensor (n, units)
    """
    import keras

    if settings.cell == "transformer":
        return _transformer(settings.units, particles)
    masked = keras.layers.Masking(0.0)(particles)
    if settings.cell == "gru":
        return keras.layers.GRU(settings.units, name="gru")(masked)
    return keras.layers.LSTM(settings.units, name="lstm")(masked)


def _transformer(units: int, particles: Any) -> Any:
    """Two encoder blocks, normalised first (Xiong et al. 2020), and the mean over an event's particles, 0 of none."""
    import keras

    real = keras.ops.any(keras.ops.not_equal(particles, 0.0), axis=-1)
    x = keras.layers.Dense(units)(particles)
    for _ in range(_BLOCKS):
        normalised = keras.layers.LayerNormalization()(x)
        attention = keras.layers.MultiHeadAttention(_HEADS, max(1, units // _HEADS))
        x = x + attention(normalised, normalised, attention_mask=keras.ops.expand_dims(real, 1))
        inner = keras.layers.Dense(2 * units, activation="relu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(units)(inner)
    x = keras.layers.LayerNormalization()(x)
    weight = keras.ops.expand_dims(keras.ops.cast(real, x.dtype), -1)
    return keras.ops.sum(x * weight, axis=1) / keras.ops.maximum(keras.ops.sum(weight, axis=1), 1)
