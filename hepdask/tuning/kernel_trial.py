"""The high-level network trained in a task of a Dask worker: on the dense kernel, without TensorFlow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hepdask.config import HLF
from hepdask.errors import TrainingError
from hepdask.kernels.dense import DenseStack, Sample
from hepdask.kernels.optimizer_rules import OptimizerRule


def initialised(widths: Sequence[int], settings: HLF, seed: int) -> DenseStack:
    """Begin a network as Keras does: weights from Glorot's uniform distribution, biases 0.

    Parameters
    ----------
    widths : sequence of int
        Features, units of the hidden layers, classes.
    settings : HLF
        Activation and dropout of the hidden layers; the optimizer.
    seed : int
        Of the weights.

    Raises
    ------
    KernelMissing
        The kernel cannot be built here.
    """
    hidden = len(widths) - 2
    activations = [settings.activation] * hidden + ["softmax"]
    stack = DenseStack(widths, activations, [settings.dropout] * hidden + [0.0], OptimizerRule.of(settings))
    rng = np.random.default_rng((seed, 0))
    arrays: list[NDArray[np.float64]] = []
    for inputs, outputs in itertools.pairwise(widths):
        limit = np.sqrt(6 / (inputs + outputs))
        arrays += [rng.uniform(-limit, limit, inputs * outputs), np.zeros(outputs)]
    stack.weights[:] = np.concatenate(arrays)
    return stack


def train(
    records: NDArray[np.float32],
    inside: NDArray[np.int64],
    class_weights: NDArray[np.float32],
    settings: HLF,
    features: int,
    seed: int,
) -> DenseStack:
    """Train a network on some events.

    Parameters
    ----------
    records : float32 (n, width)
        All events, from `hepdask.kernels.dense.records`.
    inside : int64 (m,)
        Those to learn from.
    class_weights : float32 (n_classes,)
        Weight of each class in the loss.
    settings : HLF
        Layers, epochs, batches and rates.
    features : int
        Features of an event.
    seed : int
        Of the weights, the order of the events, and dropout.

    Returns
    -------
    DenseStack

    Raises
    ------
    TrainingError
        The loss is no longer a number.
    """
    stack = initialised((features, *settings.hidden, len(class_weights)), settings, seed)
    steps = -(-len(inside) // settings.batch_size)
    for epoch in range(settings.epochs):
        order = np.random.default_rng((seed, epoch)).permutation(inside)
        sample = Sample(records, class_weights, order, settings.batch_size, seed=(seed, epoch))
        losses, _ = stack.steps(sample, 0, stack.rule.rates(settings.rate(epoch + 1), epoch * steps, steps))
        if not np.isfinite(losses).all():
            raise TrainingError(f"the loss became {losses[~np.isfinite(losses)][0]} in epoch {epoch + 1}")
    return stack
