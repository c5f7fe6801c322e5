"""Networks on high-level features only: the sample stays in memory, and one call takes many steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hepdask.batches.batch import Batch, Batches
from hepdask.distributed import collective
from hepdask.engines.engine import Result
from hepdask.engines.losses import loss, n_correct

#: Steps of one call.
_STEPS = 256


class KerasDense:
    """See `hepdask.engines`.

    With one rank the loop over the steps is compiled by XLA. With more, each step holds an allreduce, which XLA cannot
    compile; the loop still runs inside TensorFlow.
    """

    def __init__(self, model: Any, optimizer: Any, long: bool) -> None:
        self._data: tuple[Batches, Any, Any, Any] | None = None

        def call(rows: Any, training: bool) -> Any:
            return model({"high_level": rows}, training=training)

        @tf.function(jit_compile=long and collective.size() == 1, autograph=False)
        def steps(rows: Any, labels: Any, index: Any, weights: Any, count: Any) -> Any:
            def one(i: Any, losses: Any, right: Any) -> Any:
                chosen, weight = index[i], weights[i]
                label = tf.gather(labels, chosen)
                with tf.GradientTape() as tape:
                    scores = call(tf.gather(rows, chosen), True)
                    value = loss(scores, label, weight)
                gradients = tape.gradient(value, model.trainable_variables)
                optimizer.apply(gradients, model.trainable_variables)
                place = [[i]]
                losses = tf.tensor_scatter_nd_update(losses, place, [value])
                return (
                    i + 1,
                    losses,
                    tf.tensor_scatter_nd_update(right, place, [n_correct(scores, label, weight)]),
                )

            zeros = tf.zeros(_STEPS)
            _, losses, right = tf.while_loop(
                lambda i, *_: i < count, one, (tf.constant(0), zeros, zeros), parallel_iterations=1
            )
            return losses, right

        @tf.function(reduce_retracing=True, autograph=False)
        def validate(rows: Any, label: Any, weight: Any) -> Any:
            scores = call(rows, False)
            return loss(scores, label, weight), n_correct(scores, label, weight)

        @tf.function(reduce_retracing=True, autograph=False)
        def predict(rows: Any) -> Any:
            return call(rows, False)

        self._steps, self._validate, self._predict = steps, validate, predict

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""
        rows, labels, class_weights = self._load(batches)
        events = batches.reading.whole
        order = np.random.default_rng((seed, epoch)).permutation(len(events)).astype(np.int32)
        size, ranks, rank = batches.batch_size, batches.size, batches.rank
        for first in range(0, len(order), _STEPS * size):
            some = order[first : first + _STEPS * size]
            count = -(-len(some) // size)
            # short batches are filled up with events of weight 0; each rank takes every `ranks`-th of a batch
            index, weights = np.zeros((_STEPS, size), np.int32), np.zeros((_STEPS, size), np.float32)
            index.reshape(-1)[: len(some)] = some
            weights.reshape(-1)[: len(some)] = class_weights[some]
            sizes = np.full(count, size)
            sizes[-1] = len(some) - (count - 1) * size
            weights[:count] /= sizes[:, None]
            mine = slice(rank, None, ranks)
            losses, right = self._steps(rows, labels, index[:, mine], weights[:, mine], tf.constant(count))
            values = losses.numpy()[:count]
            bad = np.flatnonzero(~np.isfinite(values))
            shown = some[bad[0] * size :][:size] if len(bad) else some
            hit = float(right.numpy()[:count].sum())
            yield Result(float((values * sizes).sum()), hit, len(some), events, shown.astype(np.int64))

    def validate(self, batches: Batches) -> Iterator[Result]:
        """Score all batches in stored order, without a step."""
        for batch in batches.in_order():
            value, right = self._validate(batch.high_level, batch.label, batch.weight)
            yield Result.of(batch, value, right)

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Return class probabilities, float32 (n, classes)."""
        return self._predict(batch.high_level).numpy()

    def _load(self, batches: Batches) -> tuple[Any, Any, NDArray[np.float32]]:
        if self._data is None or self._data[0] is not batches:
            events = batches.reading.whole
            rows = batches.high_level_scaler(events.high_level)[:, batches.high_level]
            weights = np.ones(len(events), np.float32)
            if batches.class_weights is not None:
                weights = batches.class_weights[events.label].astype(np.float32)
            self._data = batches, tf.constant(rows), tf.constant(events.label), weights
        return self._data[1:]
