"""Batches as arrays of sequences of equal length, padded behind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.scaling import Scaler
from hepdask.analysis.topology import sequences
from hepdask.batches.batch import Batch


def padded(
    batch: Batch, scaler: Scaler | None, chosen: list[int], max_particles: int, multiple: int = 1
) -> NDArray[np.float32]:
    """Compute the sequences of a batch, padded behind to the longest of them.

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
    events = batch.source.select(batch.events)
    longest = max_particles if scaler is None else padded_length(batch, max_particles, multiple)
    return sequences(events.particles, events.offsets, longest, scaler)[:, :, chosen]


def padded_length(batch: Batch, max_particles: int, multiple: int = 1) -> int:
    """Compute the rows of a padded sequence, at least one; see `padded`."""
    longest = max(1, int(batch.length.max()))
    return min(-(-longest // multiple) * multiple, max_particles)
