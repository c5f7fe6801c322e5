"""A number for each event that says what is in it: the same event has it in whatever file it lies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.compiled import compiled

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def fingerprints(
    offsets: NDArray[np.int64], particles: Iterable[NDArray], high_level: NDArray
) -> NDArray[np.uint64]:
    """Hash events by what is stored of them.

    Parameters
    ----------
    offsets : int64 (n + 1,)
        Particles of event ``i`` are ``offsets[i]:offsets[i + 1]``.
    particles : iterable of float32 or int8 (n_particles,)
        Their columns, always in the same order, not rounded.
    high_level : float (n, n_features)
        High-level features.

    Returns
    -------
    uint64 (n,)
        Sum over all numbers of a hash of number, column and place in the event (the finaliser of SplitMix64: Steele,
        Lea, Flood, OOPSLA 2014). Two of 10^8 different events agree by chance in one of 3700 samples.
    """
    hashes = np.zeros(len(offsets) - 1, np.uint64)
    each = np.arange(len(offsets))
    key = 0
    for at, columns in ((each, high_level.astype(np.float32).T), (offsets, particles)):
        for column in columns:
            key += 1
            words = np.ascontiguousarray(column)
            words = words.view(np.uint32) if words.dtype == np.float32 else words.astype(np.uint32)
            _add(hashes, at, words, np.uint64(key << 32))
    return hashes


@compiled()
def _add(
    hashes: NDArray[np.uint64], offsets: NDArray[np.int64], words: NDArray[np.uint32], key: np.uint64
) -> None:
    """Add one column to the hashes of all events."""
    for event in range(len(hashes)):
        total, place = np.uint64(0), key
        for i in range(offsets[event], offsets[event + 1]):
            place += _GOLDEN
            mixed = place ^ np.uint64(words[i])
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total += mixed ^ (mixed >> np.uint64(31))
        hashes[event] += total
