"""The statistical error of an area under a ROC curve, after DeLong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def midranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rank values from 1, giving tied values the mean of the ranks that they share.

    Parameters
    ----------
    values : float (n,)
        Numbers without NaN.

    Returns
    -------
    float64 (n,)
        Ranks; they sum to n (n + 1) / 2.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def auc_standard_error(positives: NDArray[np.floating], negatives: NDArray[np.floating]) -> float | None:
    """Estimate the standard error of the AUC that separates two samples of scores.

    The estimate is that of DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837, computed from
    midranks in O(n log n) as Sun and Xu do in IEEE Signal Processing Letters 21 (2014) 1389. It needs no
    random numbers and treats ties exactly.

    Parameters
    ----------
    positives : float (m,)
        Scores of the events of the class.
    negatives : float (n,)
        Scores of all the others.

    Returns
    -------
    float or None
        The standard error. None with fewer than two events on either side, where no spread can be
        estimated. 0 where the samples do not overlap: the sample then holds no information on how rarely
        they would.
    """
    m, n = len(positives), len(negatives)
    if m < 2 or n < 2:
        return None
    together = midranks(np.concatenate([positives, negatives]))
    below_each_positive = (together[:m] - midranks(positives)) / n
    above_each_negative = 1 - (together[m:] - midranks(negatives)) / m
    variance = np.var(below_each_positive, ddof=1) / m + np.var(above_each_negative, ddof=1) / n
    return float(np.sqrt(variance))
