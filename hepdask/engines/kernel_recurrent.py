"""Networks with a recurrent layer over an event's particles, on the compiled kernels from particles to optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from hepdask.batches.batch import Batch, Batches
from hepdask.batches.padding import padded
from hepdask.batches.prefetch import ahead
from hepdask.distributed import collective
from hepdask.engines.engine import Particles, Result
from hepdask.engines.kernel_weights import KernelWeights
from hepdask.engines.supported_layers import Chain
from hepdask.kernels import recurrent
from hepdask.kernels.dense import Rows

Source = tuple[recurrent.Particles, NDArray[np.int64], NDArray[np.int64]]

#: Probabilities closer to 0 or 1 than this count as this far from it in the loss, as in Keras.
_LEAST = 1e-7


class KernelRecurrent:
    """See `hepdask.engines`.

    The recurrent kernel computes the states of a batch; the dense one takes them through the other layers to the loss
    and back, and after an allreduce of all gradients at once moves all weights. Both work on copies of the weights and
    of the optimizer's moments, which Keras has back when an epoch ends. Masks of dropout are not those that Keras would
    draw, but do not depend on the number of ranks.
    """

    def __init__(
        self, model: Any, optimizer: Any, layer: Any, chain: Chain, particles: Particles, threads: int
    ) -> None:
        self._particles = particles
        self._recurrent = recurrent.Recurrent(
            "gru" if isinstance(layer, keras.layers.GRU) else "lstm", threads
        )
        variables = [layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias]
        shapes = [tuple(variable.shape) for variable in variables]
        self._ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        self._units = layer.units
        self._rest = chain.kernel(optimizer, before=int(self._ends[-1]))
        self._kernel_weights = KernelWeights(self._rest, [*variables, *chain.weights], optimizer)
        views = np.split(self._rest.weights, self._ends)[:-1]
        self._weights = recurrent.Weights(
            *(view.reshape(shape) for view, shape in zip(views, shapes, strict=True))
        )

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""
        rest, rates = self._rest, self._kernel_weights.fetch(len(batches))
        stream = self._sources(batches.shuffled(seed, epoch))
        for (batch, source), rate in zip(stream, rates, strict=True):
            state = self._recurrent.forward(self._weights, *source)
            value, right, state_gradients = rest.differentiate_rows(_rows(state, batch, (seed, epoch)))
            gradients = self._recurrent.backward(state_gradients[:, : self._units])
            mine = (gradients.kernel, gradients.recurrent, gradients.bias)
            np.concatenate([array.ravel() for array in mine], out=rest.gradients[: self._ends[-1]])
            rest.gradients[:] = collective.allreduce(rest.gradients, "sum", "recurrent.gradients")
            rest.update(rate)
            yield Result.of(batch, value, right)
        self._kernel_weights.return_to_keras(len(batches))

    def validate(self, batches: Batches) -> Iterator[Result]:
        """Score all batches in stored order, without a step."""
        self._kernel_weights.fetch_weights()
        for batch, source in self._sources(batches.in_order()):
            scores = self._scores(batch, source)
            own = np.clip(scores[np.arange(len(scores)), batch.label], _LEAST, 1 - _LEAST)
            right = (scores.argmax(axis=1) == batch.label) & (batch.weight > 0)
            yield Result.of(batch, -(batch.weight * np.log(own)).sum(), right.sum())

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Return class probabilities, float32 (n, classes)."""
        self._kernel_weights.fetch_weights()
        return self._scores(batch, self._source(batch))

    def _scores(self, batch: Batch, source: Source) -> NDArray[np.float32]:
        state = self._recurrent.forward(self._weights, *source, keep=False)
        return self._rest.scores_of_rows(_rows(state, batch))

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


def _rows(state: NDArray[np.float32], batch: Batch, seed: tuple[int, int] = (0, 0)) -> Rows:
    """Put an event's state and its high-level features side by side; part and entry tell the events apart."""
    source, events = batch.source, batch.events
    place = (source.part[events].astype(np.uint64) << np.uint64(40)) + source.entry[events].astype(np.uint64)
    return Rows(np.hstack([state, batch.high_level]), batch.label, batch.weight, place, seed)
