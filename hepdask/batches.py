"""From stored events to the arrays a network takes: shuffled, shared out over ranks, scaled, padded.

A global batch is a run of the shuffled events; rank ``r`` of ``n`` takes every ``n``-th of them. Its
sequences are padded to the longest among them, not to the longest possible (unless the convention is the
published one, whose padding takes part).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepdask.features import sequences
from hepdask.scaling import Scaler
from hepdask.store import Events


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes
    ----------
    events : int64 (n,)
        Indices into the events the batches are made from.
    inputs : dict of float32
        ``high_level`` (n, 14) and, where wanted, ``particles`` (n, longest, 19), or as many features as the
        network takes; rows of zeros are padding.
    label : int64 (n,)
        Class.
    weight : float32 (n,)
        One over the size of the global batch, so that the weighted losses of all ranks add up to the
        mean loss; 0 for the stand-in of a rank that gets no event of a short last batch.
    """

    events: NDArray[np.int64]
    inputs: dict[str, NDArray[np.float32]]
    label: NDArray[np.int64]
    weight: NDArray[np.float32]


@dataclass(frozen=True)
class Batches:
    """Batches of one rank.

    Parameters
    ----------
    events : Events
        All events of the sample.
    inputs : dict of list of int
        What the network takes: the columns of ``"high_level"``, and perhaps of ``"particles"``.
    high_level_scaler : Scaler
        Scaling of the high-level features.
    particle_scaler : Scaler or None
        Scaling of the particles; None for the published form of a sequence.
    max_particles : int
        Longest possible particle list, which is the length of every sequence in the published form.
    batch_size : int
        Events of a global batch.
    rank, size : int
        Which rank of how many.
    """

    events: Events
    inputs: dict[str, list[int]]
    high_level_scaler: Scaler
    particle_scaler: Scaler | None
    max_particles: int
    batch_size: int
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return -(-len(self.events) // self.batch_size)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Go through all events once, in an order that seed and epoch decide."""
        return self._batches(np.random.default_rng((seed, epoch)).permutation(len(self.events)))

    def in_order(self) -> Iterator[Batch]:
        """Go through all events once, in stored order."""
        return self._batches(np.arange(len(self.events)))

    def _batches(self, order: NDArray[np.int64]) -> Iterator[Batch]:
        for start in range(0, len(order), self.batch_size):
            everyone = order[start : start + self.batch_size]
            mine = everyone[self.rank :: self.size]
            weight = np.full(max(len(mine), 1), 1.0 / len(everyone) if len(mine) else 0.0, np.float32)
            mine = mine if len(mine) else everyone[:1]
            yield Batch(mine, self._inputs(mine), self.events.label[mine], weight)

    def _inputs(self, chosen: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        high_level = self.high_level_scaler(self.events.high_level[chosen])
        arrays = {"high_level": high_level[:, self.inputs["high_level"]]}
        if "particles" in self.inputs:
            arrays["particles"] = self._sequences(chosen)[:, :, self.inputs["particles"]]
        return arrays

    def _sequences(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        starts = self.events.offsets[chosen]
        lengths = self.events.offsets[chosen + 1] - starts
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        stored = {name: column[rows] for name, column in self.events.particles.items()}
        longest = self.max_particles if self.particle_scaler is None else int(lengths.max())
        return sequences(stored, offsets, longest, self.particle_scaler)
