"""Plain Keras on batches padded to like lengths, in the form that cuDNN takes on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hepdask.ahead import ahead
from hepdask.batches import Batch, Batches, padded
from hepdask.learners import Particles, Result
from hepdask.learners.measures import hits, loss
from hepdask.learners.ragged import recurrent_layer

#: Lengths of batches are multiples of this, so that few shapes occur: a GPU prepares itself for each.
_BUCKET = 32


class Padded:
    """See `hepdask.learners`; on a GPU, Keras runs such batches through cuDNN."""

    def __init__(self, model: Any, optimizer: Any, particles: Particles) -> None:
        self._particles = particles
        self._takes_high_level = "high_level" in model.input
        call = _forward(model, masked=particles.scaler is not None)

        @tf.function(reduce_retracing=True, autograph=False)
        def step(inputs: Any, label: Any, weight: Any) -> Any:
            with tf.GradientTape() as tape:
                scores = call(inputs, True)
                value = loss(scores, label, weight)
                scaled = optimizer.scale_loss(value)  # more than 1 in half precision alone
            gradients = tape.gradient(scaled, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return value, hits(scores, label, weight)

        @tf.function(reduce_retracing=True, autograph=False)
        def predict(inputs: Any) -> Any:
            return call(inputs, False)

        @tf.function(reduce_retracing=True, autograph=False)
        def watch(inputs: Any, label: Any, weight: Any) -> Any:
            scores = call(inputs, False)
            return loss(scores, label, weight), hits(scores, label, weight)

        self._step, self._predict, self._watch = step, predict, watch

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""
        return self._results(self._step, batches.shuffled(seed, epoch))

    def watch(self, batches: Batches) -> Iterator[Result]:
        """Look at all batches in stored order without learning."""
        return self._results(self._watch, batches.in_order())

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Give class probabilities (n, classes)."""
        return self._predict(self._inputs(batch)).numpy()

    def _results(self, function: Any, stream: Iterable[Batch]) -> Iterator[Result]:
        for batch, inputs in ahead((batch, self._inputs(batch)) for batch in stream):
            value, right = function(inputs, tf.constant(batch.label), tf.constant(batch.weight))
            yield Result.of(batch, value, right)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        particles = self._particles
        rows = padded(batch, particles.scaler, particles.chosen, particles.longest, _BUCKET)
        inputs = {"particles": tf.constant(rows), "length": tf.constant(batch.length)}
        if self._takes_high_level:
            inputs["high_level"] = tf.constant(batch.high_level)
        return inputs


def _forward(model: Any, masked: bool) -> Callable[[dict[str, Any], bool], Any]:
    """Give the network as a function of padded particles, their number and the high-level features.

    cuDNN takes a recurrent layer only where real particles come first and every event has one. So the mask is made from
    the number of particles, an event without any is given one for the layer, and its state is zero behind it. Other
    networks are taken as they are.
    """
    layer = recurrent_layer(model)
    names = list(model.input)
    if layer is None:
        return lambda inputs, training: model({name: inputs[name] for name in names}, training=training)
    more = [name for name in names if name != "particles"]
    head = keras.Model([layer.output, *(model.input[name] for name in more)], model.output)

    def call(inputs: dict[str, Any], training: bool) -> Any:
        rows, length = inputs["particles"], inputs["length"]
        mask = tf.sequence_mask(tf.maximum(length, 1), tf.shape(rows)[1]) if masked else None
        state = layer(rows, mask=mask, training=training)
        if masked:
            state = tf.where(length[:, tf.newaxis] > 0, state, tf.zeros_like(state))
        return head([state, *(inputs[name] for name in more)], training=training)

    return call
