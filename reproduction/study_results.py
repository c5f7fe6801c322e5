"""What the study finds, and docs/results.md says: the rows of its table, the differences, the measured values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sample
from bootstrap import Measured

from hepdask.config import Config
from hepdask.store import Store

#: Rows of the table: the model, and what is changed in its settings.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "random forest": ("forest", {}),
    "XGBoost": ("xgboost", {}),
    "HLF": ("hlf", {}),
    "particle sequence": ("sequence", {}),
    "inclusive, GRU": ("inclusive", {}),
    "inclusive, LSTM": ("inclusive", {"models.inclusive.cell": "lstm"}),
}

#: Differences that are quoted: the second less the first.
DIFFERENCES = (
    ("HLF", "particle sequence"),
    ("particle sequence", "inclusive, GRU"),
    ("HLF", "inclusive, GRU"),
    ("HLF", "XGBoost"),
    ("random forest", "XGBoost"),
    ("inclusive, GRU", "inclusive, LSTM"),
)


@dataclass(frozen=True)
class Sequences:
    """Jagged and published sequences on the same events.

    Attributes
    ----------
    events : int
        That both networks were tested on.
    jagged, published : Measured
        Of the two networks.
    jagged_cpu_s, published_cpu_s : float
        CPU time of training, all folds of one seed.
    """

    events: int
    jagged: Measured
    published: Measured
    jagged_cpu_s: float
    published_cpu_s: float


@dataclass(frozen=True)
class Rounded:
    """The same events with particles rounded in the store.

    Attributes
    ----------
    bits : int
        Of the fraction that are kept, of 23.
    measured : Measured
        The inclusive network trained and tested on them.
    bytes, bytes_before : float
        Size of an event, rounded and not.
    """

    bits: int
    measured: Measured
    bytes: float
    bytes_before: float


@dataclass(frozen=True)
class Results:
    """Everything that docs/results.md says."""

    command: str
    name: str
    config: Config
    store: Store
    folds: int
    classes: Mapping[str, sample.Class]
    events: int
    parents: Mapping[str, tuple[int, float]]
    measured: Mapping[str, Measured]
    cpu_s: Mapping[str, float]
    sequences: Sequences
    rounded: Rounded
    networks: Mapping[tuple[str, int], Measured]
    histories: Mapping[str, Sequence[list[dict[str, float]]]]
    wall_s: float
