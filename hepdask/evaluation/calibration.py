"""Whether a score is a probability: how often events of a score are of the class, against the score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """A reliability curve.

    Attributes
    ----------
    score : float64 (b,)
        Mean score of the events in each bin that holds any.
    fraction : float64 (b,)
        Fraction of them that are of the class.
    error : float64 (b,)
        Standard error of the fraction, after Wilson: half the width of the interval of one standard deviation.
    count : int64 (b,)
        Events in the bin.
    """

    score: NDArray[np.float64]
    fraction: NDArray[np.float64]
    error: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def expected_error(self) -> float:
        """Mean distance of fraction and score over the events (expected calibration error, Naeini et al. 2015)."""
        return float(np.average(np.abs(self.fraction - self.score), weights=self.count))


def calibration(of_class: NDArray[np.bool_], scores: NDArray[np.floating], bins: int = _BINS) -> Calibration:
    """Compare scores with what came true.

    Parameters
    ----------
    of_class : bool (n,)
        Whether the event is of the class; n > 0.
    scores : float (n,)
        Probabilities of it, 0 to 1.
    bins : int
        Bins of equal width.

    Returns
    -------
    Calibration
    """
    places = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    filled = count > 0
    n = count[filled]
    hits = np.bincount(places, of_class, minlength=bins)[filled]
    score = np.bincount(places, scores, minlength=bins)[filled] / n
    fraction = hits / n
    error = np.sqrt(fraction * (1 - fraction) / n + 0.25 / n**2) / (1 + 1 / n)
    return Calibration(score, fraction, error, n)
