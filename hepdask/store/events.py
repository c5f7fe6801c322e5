"""Events in flat columns: what a store holds and batches are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Columns with one value or row per event.
_PER_EVENT = ("high_level", "label", "part", "entry")


@dataclass(frozen=True)
class Events:
    """Some events, in an order.

    Attributes
    ----------
    offsets : int64 (n + 1,)
        Particles of event ``i`` are ``offsets[i]:offsets[i + 1]``.
    particles : dict
        The columns of `Store.particle_dtypes`, (n_particles,) each.
    high_level : float32 (n, 14 or more)
        In the order of ``Store.features["hlf"]``: `feature_names.HIGH_LEVEL`, then the user's own.
    label : int64 (n,)
        Class.
    part, entry : int64 (n,)
        Part of the store (index into ``Store.parts``) and entry in its input file.
    """

    offsets: NDArray[np.int64]
    particles: dict[str, NDArray]
    high_level: NDArray[np.float32]
    label: NDArray[np.int64]
    part: NDArray[np.int64]
    entry: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def empty(cls, n_high_level: int, particle_dtypes: Mapping[str, str]) -> Events:
        """Make events of which there are none, with the columns that a store would have."""
        nothing = np.empty(0, np.int64)
        return cls(
            np.zeros(1, np.int64),
            {name: np.empty(0, dtype) for name, dtype in particle_dtypes.items()},
            np.empty((0, n_high_level), np.float32),
            nothing,
            nothing,
            nothing,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Events]) -> Events:
        """Put events behind others, in the order of `parts`, of which there is at least one."""
        lengths = [np.diff(part.offsets) for part in parts]
        return cls(
            np.concatenate(([0], np.cumsum(np.concatenate(lengths)))),
            {name: np.concatenate([part.particles[name] for part in parts]) for name in parts[0].particles},
            *(np.concatenate([getattr(part, name) for part in parts]) for name in _PER_EVENT),
        )

    def select(self, chosen: NDArray[np.int64]) -> Events:
        """Take some events.

        Parameters
        ----------
        chosen : int64 (n_chosen,)
            Their places, in the order in which they are wanted.

        Returns
        -------
        Events
        """
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        particles = {name: column[rows] for name, column in self.particles.items()}
        return Events(offsets, particles, *(getattr(self, name)[chosen] for name in _PER_EVENT))
