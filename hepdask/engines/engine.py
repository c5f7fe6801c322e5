"""How a rank takes a network through batches: what every engine does, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.scaling import Scaler
from hepdask.batches.batch import Batch, Batches
from hepdask.store import Events


@dataclass(frozen=True)
class Result:
    """What one step or more, or the validation of one batch, yielded on this rank.

    Attributes
    ----------
    loss : float
        This rank's part of the losses, summed over the events of the global batches.
    n_correct : float
        Events of this rank that were classified correctly.
    size : int
        Events of the global batches.
    source : Events
        Where the events are.
    events : int64
        Their places there; where the loss is not finite, those of the first batch in which it was not.
    """

    loss: float
    n_correct: float
    size: int
    source: Events
    events: NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch, loss: Any, n_correct: Any) -> Result:
        """Make the result of a batch from this rank's part of the mean loss and its correct events."""
        return cls(float(loss) * batch.size, float(n_correct), batch.size, batch.source, batch.events)


class Engine(Protocol):
    """Takes a network through batches."""

    def train(self, batches: Batches, seed: int, epoch: int) -> Iterator[Result]:
        """Take one step for each batch of an epoch."""

    def validate(self, batches: Batches) -> Iterator[Result]:
        """Score all batches in stored order, without a step."""

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Return class probabilities, float32 (n, classes)."""


@dataclass(frozen=True)
class Particles:
    """How a network takes particles.

    Attributes
    ----------
    scaler : Scaler or None
        None for the published form: sequences of equal length, standardised with their padding.
    chosen : list of int
        Features it takes.
    longest : int
        Longest possible list.
    """

    scaler: Scaler | None
    chosen: list[int]
    longest: int
