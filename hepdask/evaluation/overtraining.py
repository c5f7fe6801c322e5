"""Whether a model knows its training events better than others: their scores against those of the test events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

#: Below this, chance is no good explanation of the difference.
SUSPICIOUS = 0.01


def overtraining(
    labels: NDArray[np.integer],
    scores: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    train_scores: NDArray[np.floating],
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Compare the scores of training and test events, class by class, with the test of Kolmogorov and Smirnov.

    Parameters
    ----------
    labels, train_labels : int (n,), (m,)
        True classes of the test and of the training events.
    scores, train_scores : float (n, c), (m, c)
        Their scores.
    classes : sequence of str (c,)
        Names of the classes.

    Returns
    -------
    dict of dict
        For each class, from the score for it over the events that are of it: ``statistic`` (largest distance of the two
        cumulative distributions) and ``p_value`` (how often chance alone makes it as large); None where one side has no
        event.
    """
    found: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(classes):
        test, train = scores[labels == k, k], train_scores[train_labels == k, k]
        if not len(test) or not len(train):
            found[name] = {"statistic": None, "p_value": None}
            continue
        result = ks_2samp(train, test)
        found[name] = {"statistic": float(result.statistic), "p_value": float(result.pvalue)}
    return found
