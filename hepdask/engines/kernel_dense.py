"""Chains of dense layers on the compiled kernel: a call takes many steps, gather to optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.batches.batch import Batches
from hepdask.distributed import collective
from hepdask.engines.engine import Result
from hepdask.engines.keras_dense import KerasDense
from hepdask.engines.kernel_weights import KernelWeights
from hepdask.engines.supported_layers import Chain
from hepdask.kernels.dense import Sample, records

#: Steps of one call.
_STEPS = 1024


class KernelDense(KerasDense):
    """See `hepdask.engines`; validates and scores as `KerasDense` does.

    The kernel works on copies of the weights and of the optimizer's moments. Keras has them back when an epoch ends.
    With several ranks, gradients are summed between the two halves of each step. Masks of dropout are not those that
    Keras would draw, but do not depend on the number of ranks.
    """

    def __init__(self, model: Any, optimizer: Any, chain: Chain) -> None:
        super().__init__(model, optimizer, long=False)
        self._kernel = chain.kernel(optimizer)
        self._kernel_weights = KernelWeights(self._kernel, chain.weights, optimizer)
        self._classes = chain.widths[-1]
        self._kept: tuple[Batches, Any, Any] | None = None

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""
        found, class_weights = self._records(batches)
        events = batches.reading.whole
        order = np.random.default_rng((seed, epoch)).permutation(len(events))
        size = batches.batch_size
        sample = Sample(found, class_weights, order, size, batches.rank, batches.size, (seed, epoch))
        rates = self._kernel_weights.fetch(len(batches))
        for first in range(0, len(batches), _STEPS):
            losses, n_correct = self._take(sample, first, rates[first : first + _STEPS])
            some = order[first * size : (first + len(losses)) * size]
            sizes = np.full(len(losses), size)
            sizes[-1] = len(some) - (len(losses) - 1) * size
            bad = np.flatnonzero(~np.isfinite(losses))
            shown = some[bad[0] * size :][:size] if len(bad) else some
            yield Result(float((losses * sizes).sum()), float(n_correct.sum()), len(some), events, shown)
        self._kernel_weights.return_to_keras(len(batches))

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
