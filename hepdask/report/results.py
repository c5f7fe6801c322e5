"""What a report is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepdask.analysis.histograms import Document


@dataclass(frozen=True)
class ModelResult:
    """One trained model on the test split.

    Attributes
    ----------
    name : str
        Unique among the models of a report.
    labels : int (n,)
        True class of each event.
    scores : float (n, c)
        Score of each event for each class.
    history : list of dict
        One dict an epoch: ``epoch``, ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``,
        ``events_per_second``; any may be absent. Empty for models without epochs.
    facts : dict
        Anything worth a line in the report: parameters, ranks, seconds.
    train_labels, train_scores : int (m,), float (m, c)
        The same of the events it was trained on; empty where they are not known.
    importances : dict of float
        For each feature, how much of the mean AUC is lost where it is shuffled over the events; may be empty.
    """

    name: str
    labels: np.ndarray
    scores: np.ndarray
    history: list[dict[str, Any]]
    facts: dict[str, Any]
    train_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    train_scores: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    importances: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """What the models of a report have in common.

    Attributes
    ----------
    title : str
        Heading of the report.
    classes : list of str
        Names of the classes, in the order of the labels.
    features : dict of dict of float (n,)
        For each high-level feature and class name, the values in the test split.
    selection : list of dict
        For each dataset: ``dataset``, ``label``, ``files``, ``events_read``, ``events_selected``,
        ``events_lost``.
    notes : list of str
        What a reader must know before believing a number.
    configuration : str
        YAML text.
    versions : dict of str
        Version of each piece of software.
    steps : list of dict
        For each step: ``step``, ``wall_s``, ``cpu_s``.
    histograms : dict of dict
        For each class name, the histograms of all its selected events (`analysis.histograms`); may be empty.
    performance : str
        Dask's performance report, relative to the folder of the report; empty where there is none.
    """

    title: str
    classes: list[str]
    features: dict[str, dict[str, np.ndarray]]
    selection: list[dict[str, Any]]
    notes: list[str]
    configuration: str
    versions: dict[str, str]
    steps: list[dict[str, Any]]
    histograms: dict[str, Document] = field(default_factory=dict)
    performance: str = ""
