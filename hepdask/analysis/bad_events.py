"""Events no physics can be done with: found, dropped and named, while work goes on with all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.columns import BadEvent

T = TypeVar("T")


@dataclass(frozen=True)
class Dropped:
    """Events that were dropped for one reason.

    Attributes
    ----------
    events : int64 (n,)
        Their places in the array that was given, rising.
    what : str
        What is wrong with them: the first that was found.
    """

    events: NDArray[np.int64]
    what: str


def on_usable(work: Callable[[ak.Array], T], events: ak.Array) -> tuple[T, NDArray[np.int64], list[Dropped]]:
    """Work on those events that can be worked on.

    Parameters
    ----------
    work : callable
        Takes events; raises a BadEvent that names all of them that fail one of its checks.
    events : ak.Array
        Record array of events.

    Returns
    -------
    object
        What `work` gave for the events that are left.
    int64 (n_left,)
        Their places in `events`.
    list of Dropped
        All others, by what is wrong with them.

    Notes
    -----
    `work` is called once more for each of its checks that any event fails, however many events do.
    """
    left = np.arange(len(events))
    dropped: list[Dropped] = []
    while True:
        try:
            return work(events[left] if dropped else events), left, dropped
        except BadEvent as bad:
            dropped.append(Dropped(left[bad.events], bad.what))
            left = np.delete(left, bad.events)
