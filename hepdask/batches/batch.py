"""From the store to the batches of a rank: blocks of parts in random order, shuffled, mixed, shared out.

A sample that fits into the memory it is given is loaded once. A larger one is read block by block, each as
many parts as fit, while the block before is trained on. The order depends on the seed, the epoch, the store
and the memory, not on the number of ranks: a global batch is the same for any number, and every event is in
one batch of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.columns import events_of, not_finite
from hepdask.analysis.scaling import Scaler
from hepdask.analysis.topology import sequences
from hepdask.batches import batch_order
from hepdask.errors import TrainingError
from hepdask.prefetch import ahead
from hepdask.store import Events, Store
from hepdask.store.reader import Sample

#: Share of the memory one block may take: one is trained on, one waits, one is put together from its parts.
_BLOCK_SHARE = 0.25


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


class Reading:
    """A sample of a store in blocks that fit into memory.

    Parameters
    ----------
    store : Store
        The store.
    sample : str
        As in `Store.events`.
    memory : float
        Bytes that the events may take.
    particles : bool
        Whether particles are needed.
    """

    def __init__(self, store: Store, sample: Sample, memory: float, particles: bool = True) -> None:
        self.store, self.sample, self.particles = store, sample, particles
        self.counts = store.counts(sample)
        a_particle = (
            sum(np.dtype(dtype).itemsize for dtype in store.particle_dtypes.values()) if particles else 0
        )
        an_event = 4 * len(store.features["hlf"]) + 40
        self._bytes = np.array(
            [
                (part["particles"] * a_particle + part["events"] * an_event) * (count > 0)
                for part, count in zip(store.parts, self.counts, strict=True)
            ]
        )
        self._memory = memory

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def bytes(self) -> int:
        """Size of the parts that hold the sample."""
        return int(self._bytes.sum())

    @property
    def fits(self) -> bool:
        """Whether the sample is loaded once."""
        return self.bytes <= 2 * _BLOCK_SHARE * self._memory

    @cached_property
    def whole(self) -> Events:
        """All events, in the order of the store."""
        return self.load(None)

    def blocks(self, rng: np.random.Generator | None = None) -> Iterator[Events]:
        """Go through the sample.

        Parameters
        ----------
        rng : numpy.random.Generator, optional
            Shuffles the parts; by default they come in the order of the store.
        """
        if self.fits:
            yield self.whole
            return
        parts = np.flatnonzero(self.counts)
        if rng is not None:
            rng.shuffle(parts)
        block: list[int] = []
        for part in parts.tolist():
            if block and self._bytes[[*block, part]].sum() > _BLOCK_SHARE * self._memory:
                yield self.load(block)
                block = []
            block.append(part)
        if block:
            yield self.load(block)

    def load(self, parts: list[int] | None) -> Events:
        """Load the events of these parts, or all, and make sure that they are numbers."""
        events = self.store.events(self.sample, parts, self.particles)
        wrong = _first_not_finite(events)
        if wrong is not None:
            event, what = wrong
            file, entry = self.store.parts[events.part[event]]["file"], events.entry[event]
            raise TrainingError(
                f"{file} entry {entry}: {what} is not a finite number; look at the file, or prepare the store again "
                "without it"
            )
        return events


def _first_not_finite(events: Events) -> tuple[int, str] | None:
    """Find an event with a NaN or an infinity, and say what of it."""
    finite = np.isfinite(events.high_level).all(axis=1)
    if not finite.all():
        return int(np.argmin(finite)), "a high-level feature"
    for name, column in events.particles.items():
        wrong = not_finite(column) if column.dtype.kind == "f" else np.empty(0, np.int64)
        if len(wrong):
            return int(events_of(events.offsets, wrong[:1])[0]), f"{name} of a particle"
    return None


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
            events = block if waiting is None else joined_events(waiting, block)
            shuffled = rng.permutation(len(events))
            whole = len(events) // self.batch_size * self.batch_size if left else len(events)
            waiting = chosen_events(events, shuffled[whole:]) if whole < len(events) else None
            if whole:
                yield events, shuffled[:whole]

    def _in_order(self) -> Iterator[Batch]:
        waiting: Events | None = None
        left = len(self.reading)
        for block in ahead(self.reading.blocks()):
            left -= len(block)
            events = block if waiting is None else joined_events(waiting, block)
            whole = len(events) // self.batch_size * self.batch_size if left else len(events)
            for start in range(0, whole, self.batch_size):
                everyone = np.arange(start, min(start + self.batch_size, whole))
                yield self._batch(events, everyone, everyone[self.rank :: self.size])
            waiting = chosen_events(events, np.arange(whole, len(events))) if whole < len(events) else None

    def _batch(self, events: Events, everyone: NDArray[np.int64], mine: NDArray[np.int64]) -> Batch:
        share = 1.0 / len(everyone) if len(mine) else 0.0
        mine = mine if len(mine) else everyone[:1]
        label = events.label[mine]
        weight = (
            np.full(len(mine), share) if self.class_weights is None else self.class_weights[label] * share
        )
        high_level = self.high_level_scaler(events.high_level[mine])[:, self.high_level]
        return Batch(events, mine, high_level, label, weight.astype(np.float32), len(everyone))


def padded(
    batch: Batch, scaler: Scaler | None, chosen: list[int], max_particles: int, multiple: int = 1
) -> NDArray[np.float32]:
    """Give the sequences of a batch, padded behind to the longest of them.

    Parameters
    ----------
    batch : Batch
        The events.
    scaler : Scaler or None
        Scaling of the particles; None for the published form, in which all sequences are equally long.
    chosen : list of int
        Features the network takes.
    max_particles : int
        Longest possible particle list.
    multiple : int
        The length is rounded up to a multiple of this one, but never above `max_particles`.

    Returns
    -------
    float32 (n, longest, n_chosen)
        Rows of zeros are padding.
    """
    events = chosen_events(batch.source, batch.events)
    longest = max_particles if scaler is None else padded_length(batch, max_particles, multiple)
    return sequences(events.particles, events.offsets, longest, scaler)[:, :, chosen]


def padded_length(batch: Batch, max_particles: int, multiple: int = 1) -> int:
    """Give the rows of a padded sequence, at least one; see `padded`."""
    longest = max(1, int(batch.length.max()))
    return min(-(-longest // multiple) * multiple, max_particles)


def chosen_events(events: Events, chosen: NDArray[np.int64]) -> Events:
    """Take some events, given their places."""
    starts = events.offsets[chosen]
    lengths = events.offsets[chosen + 1] - starts
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    particles = {name: column[rows] for name, column in events.particles.items()}
    rest = {name: getattr(events, name)[chosen] for name in ("high_level", "label", "part", "entry")}
    return replace(events, offsets=offsets, particles=particles, **rest)


def joined_events(first: Events, second: Events) -> Events:
    """Put events behind others."""
    return Events(
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        {name: np.concatenate([first.particles[name], second.particles[name]]) for name in first.particles},
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("high_level", "label", "part", "entry")
        ),
    )
