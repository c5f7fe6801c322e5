"""Stacks of dense layers on the compiled kernel: a call takes many steps, gather to Adam."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from hepdask.batches import Batches
from hepdask.compiled.dense import ACTIVATIONS, Sample, records
from hepdask.compiled.dense import Stack as Kernel
from hepdask.distributed import collective
from hepdask.learners import Result
from hepdask.learners.dense import Dense

#: Steps of one call.
_STEPS = 1024

#: What a layer must do without.
_EXTRAS = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


def dense_layers(model: Any) -> list[tuple[Any, float]] | None:
    """Find the layers of a network that the kernel can train; None where it is another kind of network.

    That is one dense layer after the other, with biases and one of the kernel's activations, a softmax at the
    end and nowhere else. Behind a hidden layer there may be dropout.

    Returns
    -------
    list of (keras.layers.Dense, float), or None
        Each layer, and the rate of the dropout behind it.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    if not layers or any(len(layer._inbound_nodes) != 1 for layer in layers):
        return None
    chained = all(layer.input is before.output for before, layer in itertools.pairwise(layers))
    ends = layers[0].input is model.input["high_level"] and layers[-1].output is model.output
    if not chained or not ends:
        return None
    found: list[tuple[Any, float]] = []
    for before, layer in itertools.pairwise([None, *layers]):
        if _is_plain(layer):
            found.append((layer, 0.0))
        elif _is_dropout(layer) and before is not None and _is_plain(before):
            found[-1] = before, layer.rate
        else:
            return None
    names = [_activation(layer) for layer, _ in found]
    one_softmax = "softmax" not in names[:-1] and _activation(layers[-1]) == "softmax"
    return found if one_softmax and set(names) <= set(ACTIVATIONS) else None


def _is_plain(layer: Any) -> bool:
    if type(layer) is not keras.layers.Dense or layer.compute_dtype != "float32":
        return False
    settings = layer.get_config()
    return layer.use_bias and layer.trainable and not any(settings.get(extra) for extra in _EXTRAS)


def _is_dropout(layer: Any) -> bool:
    return type(layer) is keras.layers.Dropout and layer.noise_shape is None


def _activation(layer: Any) -> str:
    return str(keras.activations.serialize(layer.activation))


class Stack(Dense):
    """See `hepdask.learners`; looks and scores as `Dense` does.

    The kernel works on copies of the weights and of Adam's moments. Keras has them back when an epoch ends. With
    several ranks, gradients are summed between the two halves of each step. Masks of dropout are not those that Keras
    would draw, but do not depend on the number of ranks.
    """

    def __init__(self, model: Any, optimizer: Any, found: list[tuple[Any, float]]) -> None:
        super().__init__(model, optimizer, long=False)
        layers = [layer for layer, _ in found]
        widths = [layers[0].kernel.shape[0], *(layer.units for layer in layers)]
        self._kernel = Kernel(
            widths, [_activation(layer) for layer in layers], [rate for _, rate in found],
            optimizer.beta_1, optimizer.beta_2, optimizer.epsilon,
        )  # fmt: skip
        self._optimizer, self._classes = optimizer, widths[-1]
        weights = [variable for layer in layers for variable in (layer.kernel, layer.bias)]
        places = [optimizer._get_variable_index(variable) for variable in weights]
        self._copied = [
            (self._kernel.weights, weights),
            (self._kernel.first_moments, [optimizer._momentums[place] for place in places]),
            (self._kernel.second_moments, [optimizer._velocities[place] for place in places]),
        ]
        self._kept: tuple[Batches, Any, Any] | None = None

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""
        found, class_weights = self._records(batches)
        events = batches.reading.whole
        order = np.random.default_rng((seed, epoch)).permutation(len(events))
        size = batches.batch_size
        sample = Sample(found, class_weights, order, size, batches.rank, batches.size, (seed, epoch))
        rate, before = float(self._optimizer.learning_rate), int(self._optimizer.iterations)
        rates = self._kernel.rates(rate, before, len(batches))
        for buffer, variables in self._copied:
            np.concatenate([np.ravel(variable.value) for variable in variables], out=buffer)
        for first in range(0, len(batches), _STEPS):
            losses, hits = self._take(sample, first, rates[first : first + _STEPS])
            some = order[first * size : (first + len(losses)) * size]
            sizes = np.full(len(losses), size)
            sizes[-1] = len(some) - (len(losses) - 1) * size
            bad = np.flatnonzero(~np.isfinite(losses))
            shown = some[bad[0] * size :][:size] if len(bad) else some
            yield Result(float((losses * sizes).sum()), float(hits.sum()), len(some), events, shown)
        for buffer, variables in self._copied:
            ends = np.cumsum([int(np.prod(variable.shape)) for variable in variables])
            for variable, values in zip(variables, np.split(buffer, ends[:-1]), strict=True):
                variable.assign(values.reshape(variable.shape))
        self._optimizer.iterations.assign_add(len(batches))

    def _take(
        self, sample: Sample, first: int, rates: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if sample.ranks == 1:
            return self._kernel.steps(sample, first, rates)
        found = np.empty((2, len(rates)), np.float32)
        for step, rate in enumerate(rates):
            found[:, step] = self._kernel.differentiate(sample, first + step)
            self._kernel.gradients[:] = collective.allreduce(self._kernel.gradients, "sum", "dense.gradients")
            self._kernel.update(rate)
        return found[0], found[1]

    def _records(self, batches: Batches) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._kept is None or self._kept[0] is not batches:
            events = batches.reading.whole
            rows = batches.high_level_scaler(events.high_level)[:, batches.high_level]
            weights = np.ones(self._classes) if batches.class_weights is None else batches.class_weights
            self._kept = batches, records(rows, events.label), weights.astype(np.float32)
        return self._kept[1:]
