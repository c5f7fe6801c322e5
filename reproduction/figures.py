"""The two figures of docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from hepdask.report import style
from hepdask.report.plots import FEATURE_LABELS

#: Upper ends of long tails, in units of the feature; what lies beyond counts in the last bin.
_ENDS = {"HT": 1200, "MET": 300, "MT": 250, "LepPt": 250}
_WHOLE = ("nJets", "nBjets", "LepCharge", "LepIsEle")
_COLUMNS = 4


def features(
    values: NDArray[np.float32], labels: NDArray[np.int64], names: Sequence[str], classes: Sequence[str]
) -> Figure:
    """Draw every high-level feature by class, each class to unit area.

    Parameters
    ----------
    values : float32 (n, n_features)
        In physical units.
    labels : int64 (n,)
        Class of each event.
    names, classes : sequence of str
        Of the features and the classes.
    """
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(11, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS).reshape(-1)
    colours, dashes = style.class_colours(classes), style.class_dashes(classes)
    for axes, column, name in zip(panels, values.T, names, strict=False):
        edges = _edges(name, column)
        shown = np.clip(column, edges[0], np.nextafter(edges[-1], -np.inf))
        for label, true in enumerate(classes):
            counts, _ = np.histogram(shown[labels == label], edges)
            axes.stairs(counts / counts.sum(), edges, color=colours[true], linestyle=dashes[true], label=true)
        axes.set(xlim=(edges[0], edges[-1]), xlabel=FEATURE_LABELS.get(name, name), ylim=(0, None))
        if name in _WHOLE:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_minor_locator(NullLocator())
    for axes in panels[len(names) :]:
        axes.axis("off")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right", ncols=len(classes))
    return figure


def losses(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Figure:
    """Draw the loss against the epoch, the mean over trainings and the band from the least to the greatest.

    Parameters
    ----------
    histories : mapping of sequence of sequence of mapping
        For each model and training, an entry an epoch with ``loss`` and ``val_loss``.
    """
    figure = Figure(figsize=(2.8 * len(histories), 2.8), layout="constrained")
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for axes, (name, trainings) in zip(panels, histories.items(), strict=True):
        for key, label, colour, dashes in (
            ("loss", "trained on", style.MUTED, style.CLASS_DASHES[1]),
            ("val_loss", "left out", style.PALETTE[0], "-"),
        ):
            curves = np.array([[row[key] for row in training] for training in trainings])
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.fill_between(
                epochs, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, linewidth=0
            )
            axes.plot(epochs, curves.mean(axis=0), color=colour, linestyle=dashes, label=label)
        axes.set(title=name, xlabel="epoch", ylabel="loss", ylim=(0, min(1.0, axes.get_ylim()[1])))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend()
    return figure


def write(figure: Figure, path: Path) -> None:
    """Write a figure as a small PNG, without the time it was made at."""
    figure.savefig(path, dpi=90, metadata={"Software": None}, facecolor="white")


def _edges(name: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
    if name in _WHOLE:
        return np.arange(np.floor(values.min()), min(values.max(), 12) + 2) - 0.5
    high = _ENDS.get(name, float(np.quantile(values, 0.998)))
    return np.linspace(min(0.0, float(values.min())), high, 31)
