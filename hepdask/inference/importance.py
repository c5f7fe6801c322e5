"""How much a model needs each feature: what is lost of its AUC where the feature is shuffled (Breiman 2001)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.evaluation.metrics import classification_metrics
from hepdask.inference.scorer import Scorer
from hepdask.store import Events, Store

#: How features of particles are called, to tell them from those of events.
PARTICLES = "particles."

#: About how many events are shuffled.
_SHUFFLED = 2000


def features(
    inputs: Mapping[Any, Sequence[int]], high_level: Sequence[str], stored: Sequence[str]
) -> list[str]:
    """Name the features that can be shuffled: high-level ones, and the stored columns of particles.

    What is computed of a column follows it: with ``particles.Pt`` the momentum is shuffled too.
    """
    found = [high_level[place] for place in inputs.get("high_level", [])]
    return found + ([PARTICLES + name for name in stored] if "particles" in inputs else [])


def sample(store: Store) -> Events:
    """Take some of the test split, as many of each part as is its share."""
    share = min(1.0, _SHUFFLED / len(store.labels("test")))
    return Events.concatenate(
        [events.select(np.arange(math.ceil(share * len(events)))) for events in store.pieces("test")]
    )


def importances(
    scorer: Scorer, events: Events, names: Sequence[str], high_level: Sequence[str], classes: Sequence[str]
) -> dict[str, float]:
    """Shuffle features one by one.

    Parameters
    ----------
    scorer : Scorer
        The model.
    events : Events
        Events of known class.
    names : sequence of str
        Features, from `features`.
    high_level : sequence of str
        Names of the columns of ``events.high_level``.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    dict of float
        Mean AUC lost where the feature is shuffled over the events, or over the particles of all events; empty where no
        AUC is defined.
    """

    def area(shuffled: Events) -> float | None:
        return classification_metrics(events.label, scorer.scores(shuffled), classes)["mean_auc"]

    whole = area(events) if len(events) else None
    if whole is None:
        return {}
    found = {}
    for name in names:
        less = area(_shuffled(events, name, high_level))
        assert less is not None, "the labels are the same"
        found[name] = whole - less
    return found


def _shuffled(events: Events, name: str, high_level: Sequence[str]) -> Events:
    rng = np.random.default_rng(1)
    if name.startswith(PARTICLES):
        column = name.removeprefix(PARTICLES)
        shuffled = rng.permutation(events.particles[column])
        return replace(events, particles={**events.particles, column: shuffled})
    values: NDArray[np.float32] = events.high_level.copy()
    place = list(high_level).index(name)
    values[:, place] = rng.permutation(values[:, place])
    return replace(events, high_level=values)
