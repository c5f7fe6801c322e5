"""From the store to the batches of a rank: blocks of parts in random order, shuffled, mixed, shared out.

A sample that fits into the memory it is given is loaded once. A larger one is read block by block, each as
many parts as fit, while the block before is trained on. The order depends on the seed, the epoch, the store
and the memory, not on the number of ranks: a global batch is the same for any number, and every event is in
one batch of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.scaling import Scaler
from hepdask.batches import batch_order
from hepdask.batches.prefetch import ahead
from hepdask.batches.reading import Reading
from hepdask.store import Events


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes
    ----------
    source : Events
        Where the events are.
    events : int64 (n,)
        Their places in `source`.
    high_level : float32 (n, n_features)
        Scaled high-level features the network takes.
    label : int64 (n,)
        Class.
    weight : float32 (n,)
        Weight of the class over the size of the global batch, so that the weighted losses of all ranks add up to
        the mean loss; 0 for the stand-in of a rank that gets no event of a batch.
    size : int
        Events of the global batch.
    """

    source: Events
    events: NDArray[np.int64]
    high_level: NDArray[np.float32]
    label: NDArray[np.int64]
    weight: NDArray[np.float32]
    size: int

    @property
    def first(self) -> NDArray[np.int64]:
        """First particle of each event, int64 (n,)."""
        return self.source.offsets[self.events]

    @property
    def length(self) -> NDArray[np.int64]:
        """Number of particles of each event, int64 (n,)."""
        return self.source.offsets[self.events + 1] - self.first


@dataclass(frozen=True)
class Batches:
    """Batches of one rank.

    Parameters
    ----------
    reading : Reading
        The events.
    high_level_scaler : Scaler
        Scaling of the high-level features.
    high_level : list of int
        Those that the network takes.
    batch_size : int
        Events of a global batch.
    window : int
        Events sorted by length together.
    class_weights : float (n_classes,), optional
        Weight of each class in the loss; default 1.
    rank, size : int
        Which rank of how many.
    """

    reading: Reading
    high_level_scaler: Scaler
    high_level: list[int]
    batch_size: int
    window: int = 8192
    class_weights: NDArray[np.float64] | None = None
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return -(-len(self.reading) // self.batch_size)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Go through all events once, in an order that seed and epoch decide."""
        rng = np.random.default_rng((seed, epoch))
        return ahead(self._shuffled(rng), depth=4)

    def in_order(self) -> Iterator[Batch]:
        """Go through all events once, in stored order; rank ``r`` takes every ``size``-th of a batch."""
        return ahead(self._in_order(), depth=4)

    def _shuffled(self, rng: np.random.Generator) -> Iterator[Batch]:
        for events, shuffled in ahead(self._shuffled_blocks(rng)):
            lengths = np.diff(events.offsets)
            for everyone in batch_order.batches(shuffled, lengths, self.batch_size, self.window, rng):
                places = batch_order.shares(lengths[everyone], self.size)[self.rank]
                yield self._batch(events, everyone, everyone[places])

    def _shuffled_blocks(self, rng: np.random.Generator) -> Iterator[tuple[Events, NDArray[np.int64]]]:
        """Shuffle each block; what would make a short batch waits for the next block."""
        # a stream of its own: this runs ahead of the drawing of tiles
        rng = np.random.default_rng(rng.integers(2**63))
        waiting: Events | None = None
        left = len(self.reading)
        for block in self.reading.blocks(rng):
            left -= len(block)
            events = block if waiting is None else Events.concatenate([waiting, block])
            shuffled = rng.permutation(len(events))
            whole = len(events) // self.batch_size * self.batch_size if left else len(events)
            waiting = events.select(shuffled[whole:]) if whole < len(events) else None
            if whole:
                yield events, shuffled[:whole]

    def _in_order(self) -> Iterator[Batch]:
        waiting: Events | None = None
        left = len(self.reading)
        for block in ahead(self.reading.blocks()):
            left -= len(block)
            events = block if waiting is None else Events.concatenate([waiting, block])
            whole = len(events) // self.batch_size * self.batch_size if left else len(events)
            for start in range(0, whole, self.batch_size):
                everyone = np.arange(start, min(start + self.batch_size, whole))
                yield self._batch(events, everyone, everyone[self.rank :: self.size])
            waiting = events.select(np.arange(whole, len(events))) if whole < len(events) else None

    def _batch(self, events: Events, everyone: NDArray[np.int64], mine: NDArray[np.int64]) -> Batch:
        share = 1.0 / len(everyone) if len(mine) else 0.0
        mine = mine if len(mine) else everyone[:1]
        label = events.label[mine]
        weight = (
            np.full(len(mine), share) if self.class_weights is None else self.class_weights[label] * share
        )
        high_level = self.high_level_scaler(events.high_level[mine])[:, self.high_level]
        return Batch(events, mine, high_level, label, weight.astype(np.float32), len(everyone))
