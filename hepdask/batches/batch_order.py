"""Which events make a batch, and which rank takes which of them: pure functions of lengths and a seed.

A recurrent network on a CPU works on tiles of events of like length, and a batch of few long and many short
tiles costs what its particles cost. So events are sorted by length within a window of shuffled ones and cut
into tiles; a batch takes one tile from each stratum of the window, from the shortest to the longest, drawn
at random. Its lengths are thus spread as those of the window, more evenly than by plain chance, and any event
may meet any other of another length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Most events of a tile.
TILE = 16

_Indices = NDArray[np.int64]


def batches(
    order: _Indices, lengths: NDArray[np.int64], batch_size: int, window: int, rng: np.random.Generator
) -> list[_Indices]:
    """Cut shuffled events into batches of mixed tiles.

    Parameters
    ----------
    order : int64 (n,)
        The events, shuffled.
    lengths : int64
        Particles of each event, by its number in `order`.
    batch_size : int
        Events of a batch; the last one holds what is left over.
    window : int
        Events sorted together, rounded to whole batches.
    rng : numpy.random.Generator
        Draws the tiles.

    Returns
    -------
    list of int64
        Every event of `order` in exactly one batch.
    """
    whole = len(order) // batch_size * batch_size
    step = max(1, window // batch_size) * batch_size
    found: list[_Indices] = []
    for start in range(0, whole, step):
        found += _mixed(order[start : min(start + step, whole)], lengths, batch_size, rng)
    return found + ([order[whole:]] if whole < len(order) else [])


def _mixed(
    window: _Indices, lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[_Indices]:
    tile = next(size for size in range(min(TILE, batch_size), 0, -1) if batch_size % size == 0)
    # the longest events differ most, and weigh most: half tiles keep batches alike
    sizes = [tile] * (batch_size // tile - 1) + [tile - tile // 2, tile // 2]
    count = len(window) // batch_size
    rising = window[np.argsort(lengths[window], kind="stable")]
    ends = np.cumsum(sizes) * count
    drawn = [
        rng.permutation(rising[end - size * count : end].reshape(count, size))
        for size, end in zip(sizes, ends, strict=True)
    ]
    return list(np.concatenate(drawn, axis=1))


def shares(lengths: NDArray[np.int64], size: int) -> list[_Indices]:
    """Divide a batch among ranks so that each has about the same work.

    Parameters
    ----------
    lengths : int64 (n,)
        Particles of the batch's events.
    size : int
        Number of ranks.

    Returns
    -------
    list of int64
        Places within the batch, for each rank; every event has one rank. With fewer events than ranks, some
        get none.
    """
    falling = np.argsort(-lengths, kind="stable")
    unit = max(1, min(TILE, -(-len(lengths) // size)))
    given: list[list[_Indices]] = [[] for _ in range(size)]
    load = np.zeros(size, np.int64)
    for start in range(0, len(falling), unit):
        tile = falling[start : start + unit]
        rank = int(np.argmin(load))
        given[rank].append(tile)
        load[rank] += lengths[tile[0]] + 1
    return [np.concatenate(tiles) if tiles else np.empty(0, np.int64) for tiles in given]
