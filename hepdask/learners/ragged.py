"""The recurrent layer on the compiled kernel, what follows it in TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hepdask.ahead import ahead
from hepdask.batches import Batch, Batches, padded
from hepdask.compiled import recurrent
from hepdask.learners import Particles, Result
from hepdask.learners.measures import hits, loss

Source = tuple[recurrent.Particles, NDArray[np.int64], NDArray[np.int64]]


def recurrent_layer(model: Any) -> Any:
    """Find the layer that the kernel can compute; None where there is none.

    That is one GRU or LSTM as Keras makes them by default: on all particles, in their order, with the last
    state for an answer.
    """
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.GRU | keras.layers.LSTM)]
    if len(found) != 1:
        return None
    layer = found[0]
    settings = layer.get_config()
    usual = (
        settings["activation"] == "tanh"
        and settings["recurrent_activation"] == "sigmoid"
        and settings["use_bias"]
    )
    plain = not any(
        settings[key] for key in ("return_sequences", "return_state", "go_backwards", "stateful")
    ) and not (settings["dropout"] or settings["recurrent_dropout"])
    return layer if usual and plain and settings.get("reset_after", True) else None


class Ragged:
    """See `hepdask.learners`.

    A step is: the kernel forward; head, loss and their gradients in one TensorFlow call; the kernel backward; the
    optimizer, with its one allreduce, in another.
    """

    def __init__(self, model: Any, optimizer: Any, particles: Particles, threads: int) -> None:
        layer = recurrent_layer(model)
        self._cell = layer.cell
        self._kernel = recurrent.Recurrent("gru" if isinstance(layer, keras.layers.GRU) else "lstm", threads)
        self._particles = particles
        own = [layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias]
        ids = {id(variable) for variable in own}
        rest = [variable for variable in model.trainable_variables if id(variable) not in ids]
        more = [model.input["high_level"]] if "high_level" in model.input else []
        head = keras.Model([layer.output, *more], model.output)

        def call(state: Any, high_level: Any, training: bool) -> Any:
            return head([state, high_level] if more else [state], training=training)

        @tf.function(reduce_retracing=True, autograph=False)
        def step(state: Any, high_level: Any, label: Any, weight: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(state)
                scores = call(state, high_level, True)
                value = loss(scores, label, weight)
            of_state, *gradients = tape.gradient(value, [state, *rest])
            return value, hits(scores, label, weight), of_state, gradients

        @tf.function(autograph=False)
        def update(mine: Any, others: Any) -> None:
            optimizer.apply([*mine, *others], [*own, *rest])

        @tf.function(reduce_retracing=True, autograph=False)
        def predict(state: Any, high_level: Any) -> Any:
            return call(state, high_level, False)

        @tf.function(reduce_retracing=True, autograph=False)
        def watch(state: Any, high_level: Any, label: Any, weight: Any) -> Any:
            scores = call(state, high_level, False)
            return loss(scores, label, weight), hits(scores, label, weight)

        self._step, self._update, self._predict, self._watch = step, update, predict, watch

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""
        for batch, source in self._sources(batches.shuffled(seed, epoch)):
            state = self._kernel.forward(self._weights(), *source)
            value, right, of_state, others = self._step(
                tf.constant(state),
                tf.constant(batch.high_level),
                tf.constant(batch.label),
                tf.constant(batch.weight),
            )
            gradients = self._kernel.backward(of_state.numpy())
            mine = [tf.constant(array) for array in (gradients.kernel, gradients.recurrent, gradients.bias)]
            self._update(mine, others)
            yield Result.of(batch, value, right)

    def watch(self, batches: Batches) -> Iterator[Result]:
        """Look at all batches in stored order without learning."""
        for batch, source in self._sources(batches.in_order()):
            state = self._kernel.forward(self._weights(), *source, keep=False)
            value, right = self._watch(
                tf.constant(state),
                tf.constant(batch.high_level),
                tf.constant(batch.label),
                tf.constant(batch.weight),
            )
            yield Result.of(batch, value, right)

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Give class probabilities (n, classes)."""
        state = self._kernel.forward(self._weights(), *self._source(batch), keep=False)
        return self._predict(tf.constant(state), tf.constant(batch.high_level)).numpy()

    def _weights(self) -> recurrent.Weights:
        cell = self._cell
        return recurrent.Weights(
            *(np.asarray(variable.value) for variable in (cell.kernel, cell.recurrent_kernel, cell.bias))
        )

    def _sources(self, stream: Iterable[Batch]) -> Iterator[tuple[Batch, Source]]:
        if self._particles.scaler is not None:
            return ((batch, self._source(batch)) for batch in stream)
        return ahead((batch, self._source(batch)) for batch in stream)

    def _source(self, batch: Batch) -> Source:
        particles = self._particles
        if particles.scaler is not None:
            stored = recurrent.Stored(batch.source.particles, particles.scaler, particles.chosen)
            return stored, batch.first, batch.length
        # the published form: its padding stands among the particles and takes part
        rows = padded(batch, None, particles.chosen, particles.longest)
        length = np.full(len(rows), rows.shape[1], np.int64)
        return recurrent.Rows(rows.reshape(-1, rows.shape[2])), np.cumsum(length) - length, length
