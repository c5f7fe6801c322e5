"""Which event goes where, decided from its identity alone.

An event is known by its dataset, the origin of its file (`source.Identity`) and its entry (or its
generator parent, so that events sharing one stay together). A hash of that and a seed gives a number
in [0, 1): the same for any order of files, size of chunks, number of workers, or restart.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from hepdask.config import Split


def event_hash(
    seed: int, purpose: str, dataset: str, origin: str, group: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Hash the identity of events.

    Parameters
    ----------
    seed : int
        Seed of the split.
    purpose : str
        What the number is for; numbers for different purposes are independent.
    dataset, origin : str
        Dataset of the events, and `Identity.origin` of their file.
    group : int64 (n,)
        Entry in the file, or the parent the event shares with others.

    Returns
    -------
    uint64 (n,)
        Uniform; mixed with the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    key = hashlib.blake2b(f"{seed}\0{purpose}\0{dataset}\0{origin}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        mixed = (group.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed += np.frombuffer(key, np.uint64)[0]
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def uniform(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn hashes into numbers in [0, 1), float64 (n,)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def is_test(split: Split, dataset: str, origin: str, group: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which events are kept for the test."""
    return uniform(event_hash(split.seed, "test", dataset, origin, group)) < split.test_fraction


def is_validation(split: Split, dataset: str, origin: str, group: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which events of the training split are only watched while training."""
    return uniform(event_hash(split.seed, "validation", dataset, origin, group)) < split.validation_fraction


def balanced(labels: NDArray[np.int64], rank: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Choose equally many events of each class that is present.

    Parameters
    ----------
    labels : int (n,)
        Class of each event.
    rank : uint64 (n,)
        A hash of each event; those with the smallest are chosen.

    Returns
    -------
    bool (n,)
        The chosen events: as many of each class as the smallest class has.
    """
    present, counts = np.unique(labels, return_counts=True)
    chosen = np.zeros(len(labels), bool)
    for label in present:
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(rank[members], kind="stable")[: counts.min()]]] = True
    return chosen


def folds(labels: NDArray[np.int64], hashes: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Divide events into folds in which the classes are spread alike.

    Parameters
    ----------
    labels : int (n,)
        Class of each event.
    hashes : uint64 (n,)
        A hash of each event's group; events of one class that share it stay together.
    count : int
        Number of folds.

    Returns
    -------
    int64 (n,)
        Fold of each event. The groups of a class take turns in the order of their hashes, so folds differ by one group
        of each class at most.
    """
    fold = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        _, place = np.unique(hashes[members], return_inverse=True)
        fold[members] = place % count
    return fold
