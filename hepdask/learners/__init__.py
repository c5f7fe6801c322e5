"""How a rank takes a network through batches: four ways to do the same mathematics, each the fastest of its kind.

`stack` and `dense` run many steps in one call on high-level features that stay in memory, the one in the compiled
kernel, the other in TensorFlow; `ragged` runs networks with a recurrent layer over the particles on both compiled
kernels; `padded` is plain Keras on padded batches, for GPUs and for all other networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hepdask.batches import Batch, Batches
from hepdask.compiled import KernelMissing
from hepdask.scaling import Scaler
from hepdask.store import Events


@dataclass(frozen=True)
class Result:
    """What one step or more, or the watching of one batch, gave on this rank.

    Attributes
    ----------
    loss : float
        This rank's part of the losses, summed over the events of the global batches.
    hits : float
        Events of this rank that were classified rightly.
    size : int
        Events of the global batches.
    source : Events
        Where the events are.
    events : int64
        Their places there; where the loss is not finite, those of the first batch in which it was not.
    """

    loss: float
    hits: float
    size: int
    source: Events
    events: NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch, loss: Any, hits: Any) -> Result:
        """Take what a batch gave: this rank's part of the mean loss, and its hits."""
        return cls(float(loss) * batch.size, float(hits), batch.size, batch.source, batch.events)


class Learner(Protocol):
    """Takes a network through batches."""

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""

    def watch(self, batches: Batches) -> Iterator[Result]:
        """Look at all batches in stored order without learning."""

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Give class probabilities (n, classes)."""


@dataclass(frozen=True)
class Particles:
    """How a network takes particles.

    Attributes
    ----------
    scaler : Scaler or None
        None for the published form: sequences of equal length, standardised with their padding.
    chosen : list of int
        Features it takes.
    longest : int
        Longest possible list.
    """

    scaler: Scaler | None
    chosen: list[int]
    longest: int


def choose(
    model: Any, optimizer: Any, particles: Particles | None, kernel: bool, threads: int, long: bool = True
) -> tuple[Learner, str]:
    """Pick the way that fits a network and this machine.

    Parameters
    ----------
    model : keras.Model
        The network.
    optimizer : keras.optimizers.Optimizer or None
        One of `learners.optimizers`, built for the model's trainable variables and reducing over all ranks; None to
        score alone.
    particles : Particles or None
        None where the network takes none.
    kernel : bool
        Whether the compiled kernels may be used.
    threads : int
        Threads it may take.
    long : bool
        Whether so many steps will follow that TensorFlow had better compile them first.

    Returns
    -------
    Learner, str
        And in words what was chosen.
    """
    import tensorflow as tf

    from hepdask.learners.layers import ragged_layers
    from hepdask.learners.padded import Padded
    from hepdask.learners.ragged import Ragged

    if particles is None:
        return _choose_dense(model, optimizer, kernel, long)
    layers = ragged_layers(model)
    if tf.config.list_physical_devices("GPU"):
        return Padded(model, optimizer, particles, resident=True), "Keras on padded batches, on a GPU"
    if layers is None:
        return Padded(model, optimizer, particles), "Keras on padded batches"
    if not kernel:
        return Padded(model, optimizer, particles), "Keras on padded batches (training.kernel is off)"
    try:
        way = "the compiled recurrent kernel"
        if os.environ.get("CUDA_VISIBLE_DEVICES"):
            way += ", on the CPU: TensorFlow sees no GPU (hepdask cluster check gpu says why)"
        return Ragged(model, optimizer, *layers, particles, threads), way
    except KernelMissing as missing:
        return Padded(
            model, optimizer, particles
        ), f"Keras on padded batches, several times slower: {missing}"


def _choose_dense(model: Any, optimizer: Any, kernel: bool, long: bool) -> tuple[Learner, str]:
    from hepdask.learners.dense import Dense
    from hepdask.learners.layers import dense_chain
    from hepdask.learners.stack import Stack

    reason = "training.kernel is off"
    if kernel and optimizer is not None:
        chain = dense_chain(model)
        reason = "the kernel takes chains of dense layers alone"
        if chain is not None:
            try:
                return Stack(model, optimizer, chain), "the compiled dense kernel"
            except KernelMissing as missing:
                reason = str(missing)
    return Dense(model, optimizer, long), f"many steps in one call of TensorFlow ({reason})"
