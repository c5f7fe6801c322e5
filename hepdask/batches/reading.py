"""A sample of a store in blocks that fit into memory: loaded once, or read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from hepdask.analysis.columns import events_of, not_finite
from hepdask.errors import TrainingError
from hepdask.store import Events, Store
from hepdask.store.reader import Sample

#: Share of the memory one block may take: one is trained on, one waits, one is put together from its parts.
_BLOCK_SHARE = 0.25


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
        particle_bytes = (
            sum(np.dtype(dtype).itemsize for dtype in store.particle_dtypes.values()) if particles else 0
        )
        event_bytes = 4 * len(store.features["hlf"]) + 40
        self._bytes = np.array(
            [
                (part["particles"] * particle_bytes + part["events"] * event_bytes) * (count > 0)
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
        """Load the events of these parts, or all, and make sure that they are numbers.

        Raises
        ------
        TrainingError
            A value is not finite; the message names the file and the entry.
        """
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
