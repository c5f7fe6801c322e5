"""Plain Keras on batches padded to like lengths, in the form that cuDNN takes on a GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hepdask.batches.batch import Batch, Batches
from hepdask.batches.padding import padded, padded_length
from hepdask.batches.prefetch import ahead
from hepdask.engines.device_batches import DeviceBatches
from hepdask.engines.engine import Particles, Result
from hepdask.engines.losses import loss, n_correct
from hepdask.engines.supported_layers import recurrent_layer
from hepdask.models.networks.recurrence import forward, plain
from hepdask.store import Events

logger = logging.getLogger(__name__)

#: Lengths of batches are multiples of this, so that few shapes occur: a GPU prepares itself for each.
_BUCKET = 32


class KerasPadded:
    """See `hepdask.engines`; on a GPU, Keras runs such batches through cuDNN.

    Parameters
    ----------
    model, optimizer, particles
        As in `hepdask.engines.choice.choose_engine`.
    on_device : bool
        Whether particles go to TensorFlow's device once, and batches are made there; where it has no room for
        them, batches are made here.
    """

    def __init__(self, model: Any, optimizer: Any, particles: Particles, on_device: bool = False) -> None:
        self._particles = particles
        self._on_device = on_device and particles.scaler is not None
        self._device_batches: DeviceBatches | None = None
        self._takes_high_level = "high_level" in model.input
        layer = recurrent_layer(model)
        call = plain(model) if layer is None else forward(model, layer)

        @tf.function(reduce_retracing=True, autograph=False)
        def step(inputs: Any, label: Any, weight: Any) -> Any:
            with tf.GradientTape() as tape:
                scores = call(inputs, True)
                value = loss(scores, label, weight)
                scaled = optimizer.scale_loss(value)  # more than 1 in half precision only
            gradients = tape.gradient(scaled, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return value, n_correct(scores, label, weight)

        @tf.function(reduce_retracing=True, autograph=False)
        def predict(inputs: Any) -> Any:
            return call(inputs, False)

        @tf.function(reduce_retracing=True, autograph=False)
        def validate(inputs: Any, label: Any, weight: Any) -> Any:
            scores = call(inputs, False)
            return loss(scores, label, weight), n_correct(scores, label, weight)

        self._step, self._predict, self._validate = step, predict, validate

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""
        return self._results(self._step, batches.shuffled(seed, epoch))

    def validate(self, batches: Batches) -> Iterator[Result]:
        """Score all batches in stored order, without a step."""
        return self._results(self._validate, batches.in_order())

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Return class probabilities, float32 (n, classes)."""
        return self._predict(self._inputs(batch)).numpy()

    def _results(self, function: Any, stream: Iterable[Batch]) -> Iterator[Result]:
        for batch, inputs in ahead((batch, self._inputs(batch)) for batch in stream):
            value, right = function(inputs, tf.constant(batch.label), tf.constant(batch.weight))
            yield Result.of(batch, value, right)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        particles = self._particles
        inputs = {"particles": self._rows(batch)}
        if particles.scaler is not None:  # else all rows take part
            inputs["length"] = tf.constant(batch.length)
        if self._takes_high_level:
            inputs["high_level"] = tf.constant(batch.high_level)
        return inputs

    def _rows(self, batch: Batch) -> Any:
        particles = self._particles
        if self._on_device:
            with contextlib.suppress(tf.errors.ResourceExhaustedError):
                return self._batches_of(batch.source).rows(
                    batch.events, padded_length(batch, particles.longest, _BUCKET)
                )
            self._on_device, self._device_batches = False, None
            logger.info("the GPU has no room for the particles: batches are made on the CPU")
        return tf.constant(padded(batch, particles.scaler, particles.chosen, particles.longest, _BUCKET))

    def _batches_of(self, events: Events) -> DeviceBatches:
        """Return these events on the device; the ones before go when the last batch of them has gone."""
        if self._device_batches is None or self._device_batches.events is not events:
            self._device_batches = None
            assert self._particles.scaler is not None
            self._device_batches = DeviceBatches(events, self._particles.scaler, self._particles.chosen)
        return self._device_batches
