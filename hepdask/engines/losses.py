"""Loss and correct events of a batch, in TensorFlow."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def loss(scores: Any, label: Any, weight: Any) -> Any:
    """Sum of weight times cross-entropy over the events, float32 ()."""
    return tf.reduce_sum(weight * keras.ops.sparse_categorical_crossentropy(label, scores))


def n_correct(scores: Any, label: Any, weight: Any) -> Any:
    """Count the events whose class has the largest score, float32 (); events of weight 0 do not count."""
    right = tf.equal(tf.argmax(scores, axis=1, output_type=label.dtype), label) & (weight > 0)
    return tf.reduce_sum(tf.cast(right, tf.float32))
