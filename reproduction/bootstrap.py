"""Errors of accuracy and AUC, and of their differences: whole parents are drawn again, the same for all models.

Events of one parton level are alike, so a bootstrap over events would give errors that are too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REPLICAS = 400


@dataclass(frozen=True)
class Measured:
    """Accuracy and AUCs of one model.

    Attributes
    ----------
    values : float64 (n_seeds, 1 + replicas, 1 + n_classes)
        Accuracy, then the AUC of each class against the rest. The first row is measured on the events themselves,
        the others on samples of parents drawn with replacement.
    between_seeds : float64 (1 + n_classes,)
        Variance that the choice of seeds gives the mean; by default from the spread of the seeds, 0 where there is one.
    """

    values: Floats
    between_seeds: Floats = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        if not self.between_seeds.size:
            first, seeds = self.values[:, 0], len(self.values)
            spread = first.var(axis=0, ddof=1) / seeds if seeds > 1 else np.zeros(first.shape[1])
            object.__setattr__(self, "between_seeds", spread)

    @property
    def mean(self) -> Floats:
        """Mean over the seeds, (1 + n_classes,)."""
        return self.values[:, 0].mean(axis=0)

    @property
    def error(self) -> Floats:
        """Its error, (1 + n_classes,): that of the sample, and where there are several seeds that of their mean."""
        of_sample = self.values[:, 1:].mean(axis=0).std(axis=0)
        return np.hypot(of_sample, np.sqrt(self.between_seeds))

    def __sub__(self, other: Measured) -> Measured:
        """Take differences replica by replica.

        Seeds of two models have nothing in common, so their variances add. The spread of the differences has the same
        expectation and half the degrees of freedom: with three seeds it is too small by chance far more often.
        """
        return Measured(self.values - other.values, self.between_seeds + other.between_seeds)


def draw(
    parents: NDArray[np.int64], labels: NDArray[np.int64], replicas: int = REPLICAS, seed: int = 1
) -> Floats:
    """Draw parents of each class with replacement.

    Parameters
    ----------
    parents, labels : int64 (n,)
        Parent and class of each event; a parent has one class.
    replicas : int
        How often.
    seed : int
        Of the draws.

    Returns
    -------
    float64 (1 + replicas, n)
        How often each event counts; the first row is one.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + replicas, len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        unique, place = np.unique(parents[members], return_inverse=True)
        drawn = rng.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=replicas)
        weights[1:, members] = drawn[:, place]
    return weights


def measure(
    scores: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    weights: Floats,
) -> Measured:
    """Measure a model in every replica.

    Parameters
    ----------
    scores : sequence of float (n, n_classes)
        One for each seed.
    labels, folds : int64 (n,)
        Class and fold. AUCs are those within folds, averaged: models of different folds are not mixed.
    weights : float64 (1 + replicas, n)
        From `draw`.
    """
    classes = scores[0].shape[1]
    found = np.zeros((len(scores), len(weights), 1 + classes))
    numbers = np.unique(folds)
    for values, row in zip(scores, found, strict=True):
        hits = values.argmax(axis=1) == labels
        row[:, 0] = weights @ hits / weights.sum(axis=1)
        for fold in numbers:
            inside = np.flatnonzero(folds == fold)
            for k in range(classes):
                row[:, 1 + k] += area(values[inside, k], labels[inside] == k, weights[:, inside]) / len(
                    numbers
                )
    return Measured(found)


def area(scores: NDArray[np.floating], positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Compute the area under the ROC curve for each row of weights (r, n), float64 (r,); ties count half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ordered = weights[:, order]
    above = np.add.reduceat(ordered * positive[order], starts, axis=1)
    below = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    beaten = np.cumsum(below, axis=1) - below / 2
    return (above * beaten).sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1))


def effective_events(parents: NDArray[np.int64]) -> float:
    """Say how many independent events would carry as much: (Σ m)² / Σ m², m the events of a parent.

    It is exact where events of one parent are equal; where they only resemble each other, there are more.
    """
    counts = np.unique(parents, return_counts=True)[1].astype(float)
    return float(counts.sum() ** 2 / (counts**2).sum())
