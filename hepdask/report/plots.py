"""The figures of a report: plain arrays in, a matplotlib Figure out.

Every function must be called within `style.applied()` to get the look of the report, and
the figure saved within it too. None of them touches pyplot, so no figure outlives its last reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    AsinhLocator,
    FuncFormatter,
    MaxNLocator,
    MultipleLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

from hepdask.analysis.histograms import axis_of
from hepdask.evaluation.calibration import Calibration
from hepdask.evaluation.metrics import TRUE_POSITIVE_RATES
from hepdask.report import number_format, style

FloatArray = NDArray[np.floating]

FEATURE_LABELS = {
    "HT": "HT [GeV]",
    "MET": "MET [GeV]",
    "phiMET": "φ of MET [rad]",
    "MT": "MT [GeV]",
    "nJets": "number of jets",
    "nBjets": "number of b-jets",
    "LepPt": "lepton pT [GeV]",
    "LepEta": "lepton η",
    "LepPhi": "lepton φ [rad]",
    "LepIsoCh": "lepton isolation, charged",
    "LepIsoGamma": "lepton isolation, photons",
    "LepIsoNeu": "lepton isolation, neutral hadrons",
    "LepCharge": "lepton charge",
    "LepIsEle": "lepton is an electron",
}
"""Axis titles of the high-level features; one that is not listed keeps its name."""

PARTICLE_LABELS = {
    "Energy": "energy [GeV]",
    "Px": "px [GeV]",
    "Py": "py [GeV]",
    "Pz": "pz [GeV]",
    "Pt": "pT [GeV]",
    "Eta": "η",
    "Phi": "φ [rad]",
    "vtxX": "vertex x [mm]",
    "vtxY": "vertex y [mm]",
    "vtxZ": "vertex z [mm]",
    "ChPFIso": "isolation, charged",
    "GammaPFIso": "isolation, photons",
    "NeuPFIso": "isolation, neutral hadrons",
    "isChHad": "is a charged hadron",
    "isNeuHad": "is a neutral hadron",
    "isGamma": "is a photon",
    "isEle": "is an electron",
    "isMu": "is a muon",
    "Charge": "charge",
}
"""Axis titles of the features of particles."""

_LINE = 42  # letters that fit beside one another in a panel
_SCORE_BINS = 40
_FEATURE_BINS = 36
_ROC_POINTS = 300
_LOWEST_TPR = 0.4
_PILED_UP = 0.4


class RocCurve(NamedTuple):
    """One model's ROC curve for one class: float (t,) rates and the area with its error."""

    fpr: FloatArray
    tpr: FloatArray
    auc: float
    auc_error: float | None


def roc(
    curves: Mapping[str, Mapping[str, RocCurve]], colours: Mapping[str, str], models: Sequence[str]
) -> Figure:
    """Draw the ROC curves of all models, one panel a class against the rest.

    Parameters
    ----------
    curves : mapping of mapping of RocCurve
        Curves by class, then by model.
    colours : mapping of str
        Colour of each class.
    models : sequence of str
        All models of the report in order; a model's line style follows its place here.
    """
    figure, panels = _row(len(curves))
    for axes, (name, by_model) in zip(panels, curves.items(), strict=True):
        for model, curve in by_model.items():
            axes.plot(
                *_thinned(curve), color=colours[name], **_line(models, model), label=_roc_label(model, curve)
            )
        axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set(xlim=(0, 1), ylim=(0, 1.02), title=_against_the_rest(name))
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
        axes.legend(loc="lower right")
    return figure


def roc_log(
    curves: Mapping[str, Mapping[str, RocCurve]], colours: Mapping[str, str], models: Sequence[str]
) -> Figure:
    """Draw the false-positive rate on a logarithmic scale, with the working points marked.

    Parameters are those of `roc`. This is the view for a trigger: it shows how far a background falls at a
    signal efficiency that one can afford.
    """
    figure, panels = _row(len(curves))
    for axes, (name, by_model) in zip(panels, curves.items(), strict=True):
        lowest = 0.3
        for model, curve in by_model.items():
            fpr, tpr = _thinned(curve)
            seen = fpr > 0
            lowest = min(lowest, float(fpr[seen & (tpr >= _LOWEST_TPR)].min()))
            line, marker = _line(models, model), _marker(models, model)
            axes.plot(tpr[seen], fpr[seen], color=colours[name], **line)
            axes.plot(*_marks(curve), color=colours[name], linestyle="none", **marker)
            axes.plot([], [], color=colours[name], **line, **marker, label=model)
        axes.set(xlim=(_LOWEST_TPR, 1.005), ylim=(lowest / 4, 1.2), yscale="log")
        axes.set(xlabel="true-positive rate", ylabel="false-positive rate", title=_against_the_rest(name))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend(loc="lower right")
    return figure


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: rows normalised to the true class, counts in the cells.

    Parameters
    ----------
    matrix : int (c, c)
        Counts; rows are true classes, columns predicted ones.
    classes : sequence of str (c,)
        Names of the classes.
    """
    figure, (axes,) = _row(1)
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            fraction = count / sum(counts) if sum(counts) else None
            _cell(axes, row, column, count, fraction)
    ticks = np.arange(len(classes))
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5))
    below = [_folded(name, _LINE * 2 // 3 // len(classes)) for name in classes]
    are_long = below != list(classes)
    axes.set_xticks(ticks, below)
    axes.set_yticks(
        ticks, [_folded(name, _LINE // 3) for name in classes], rotation=0 if are_long else 90, va="center"
    )
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(length=0, labelsize=8 if are_long else 10)
    return figure


def learning_curve(history: Sequence[Mapping[str, Any]], quantity: str) -> Figure:
    """Draw a quantity of training and validation against the epoch.

    Parameters
    ----------
    history : sequence of mapping
        One entry an epoch with ``epoch``, `quantity` and ``val_`` + `quantity`, any of them absent.
    quantity : str
        ``loss`` or ``accuracy``; the best epoch of the validation is marked.
    """
    figure, (axes,) = _row(1)
    marker = "." if len(history) <= 20 else None
    lines = (
        (quantity, "training", style.MUTED, style.CLASS_DASHES[1]),
        (f"val_{quantity}", "validation", style.PALETTE[0], "-"),
    )
    for key, label, colour, dashes in lines:
        epochs, values = series(history, key)
        if len(values):
            axes.plot(epochs, values, color=colour, linestyle=dashes, marker=marker, label=label)
    epochs, values = series(history, f"val_{quantity}")
    if len(values):
        best = int(np.argmin(values) if quantity == "loss" else np.argmax(values))
        axes.plot(
            epochs[best], values[best], "o", ms=8, mfc="none", color=style.PALETTE[0],
            label=f"best, epoch {epochs[best]:g}",
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel=quantity)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y")
    axes.margins(y=0.12)
    axes.legend(loc="best")
    return figure


def calibration(curves: Mapping[str, Calibration], classes: Sequence[str]) -> Figure:
    """Draw how often events are of a class against their score for it; the diagonal is a true probability.

    Parameters
    ----------
    curves : mapping of Calibration
        The curve of each class.
    classes : sequence of str
        Names of the classes.
    """
    figure, (axes,) = _row(1)
    colours, dashes = style.class_colours(classes), style.class_dashes(classes)
    axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for name, curve in curves.items():
        axes.errorbar(
            curve.score, curve.fraction, curve.error, color=colours[name], linestyle=dashes[name], marker="o",
            ms=3.5, elinewidth=0.9, linewidth=1.2, label=_folded(name, _LINE * 2 // 3),
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score for the class", ylabel="fraction of the class")
    axes.legend(loc="upper left")
    return figure


def importances(values: Mapping[str, float]) -> Figure:
    """Draw what is lost where a feature is shuffled, the most important feature on top.

    Parameters
    ----------
    values : mapping of float
        Lost mean AUC by feature.
    """
    figure = Figure(figsize=(style.PANEL[0], max(1.8, 0.9 + 0.2 * len(values))), layout="constrained")
    axes = figure.subplots()
    names = sorted(values, key=lambda name: values[name])
    axes.barh(names, [values[name] for name in names], color=style.PALETTE[0], height=0.65)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set(xlabel="mean AUC lost when the feature is shuffled", ylim=(-0.6, len(names) - 0.4))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0, labelsize=9)
    return figure


def scores(
    labels: NDArray[np.integer],
    values: FloatArray,
    classes: Sequence[str],
    shown: Sequence[str],
    train_labels: NDArray[np.integer] | None = None,
    train_values: FloatArray | None = None,
) -> Figure:
    """Draw how the score of each class is distributed over the events of every true class.

    Parameters
    ----------
    labels : int (n,)
        True class of each event.
    values : float (n, c)
        Scores.
    classes : sequence of str (c,)
        Names of the classes.
    shown : sequence of str
        Classes whose score gets a panel.
    train_labels, train_values : int (m,), float (m, c), optional
        The same of the training events, drawn as dots.
    """
    figure, panels = _row(len(shown))
    colours, dashes = style.class_colours(classes), style.class_dashes(classes)
    edges = np.linspace(min(0.0, float(values.min())), max(1.0, float(values.max())), _SCORE_BINS + 1)
    for axes, name in zip(panels, shown, strict=True):
        column = values[:, list(classes).index(name)]
        for k, true in enumerate(classes):
            _step(axes, column[labels == k], edges, colours[true], dashes[true], true)
            if train_labels is not None and train_values is not None and (train_labels == k).any():
                trained = train_values[train_labels == k, list(classes).index(name)]
                heights = np.histogram(trained, edges)[0] / len(trained)
                seen = heights > 0
                middles = (edges[1:] + edges[:-1]) / 2
                axes.plot(middles[seen], heights[seen], ".", ms=3.5, color=colours[true])
        axes.set(
            xlim=(edges[0], edges[-1]),
            xlabel=_folded(f"score for {name}", _LINE),
            ylabel="fraction of events",
        )
        _logarithmic(axes)
        _legend_above(axes)
    return figure


def feature(name: str, values: Mapping[str, FloatArray], classes: Sequence[str]) -> Figure:
    """Draw a high-level feature by class, each class to unit area.

    The scale is logarithmic where a single bin holds most of a class, as an isolation of zero does.

    Parameters
    ----------
    name : str
        The feature.
    values : mapping of float (n,)
        Its values by class; a class may be empty or absent, values that are not finite are left out.
    classes : sequence of str
        Names of the classes.
    """
    figure, (axes,) = _row(1)
    colours, dashes = style.class_colours(classes), style.class_dashes(classes)
    finite = {c: np.asarray(v)[np.isfinite(v)] for c, v in values.items() if c in colours}
    edges = _feature_edges(np.concatenate([*finite.values(), np.empty(0)]))
    for true in classes:
        _step(axes, finite.get(true, np.empty(0)), edges, colours[true], dashes[true], true)
    axes.set(xlim=(edges[0], edges[-1]), xlabel=FEATURE_LABELS.get(name, name), ylabel="fraction of events")
    if edges[1] - edges[0] == 1 and len(edges) < 15:
        axes.xaxis.set_major_locator(MultipleLocator(1))
        axes.xaxis.set_minor_locator(NullLocator())
    if len(edges) > _FEATURE_BINS and axes.dataLim.ymax > _PILED_UP:
        _logarithmic(axes)
    else:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.2)
    _legend_above(axes)
    return figure


def histogram(name: str, by_class: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> Figure:
    """Draw a histogram that was filled while preparing, each class to unit area, where there is anything to see.

    Parameters
    ----------
    name : str
        As in `hepdask.analysis.histograms`: ``hlf.HT`` or ``particles.Pt``.
    by_class : mapping of mapping
        The histogram of each class, all on one axis.
    classes : sequence of str
        Names of the classes; one may be absent.
    """
    figure, (axes,) = _row(1)
    axis = axis_of(next(iter(by_class.values())))
    counts = {c: _with_ends(by_class[c]["counts"]) for c in classes if c in by_class}
    first, last = _occupied(np.sum(list(counts.values()), axis=0))
    edges = axis.edges()[first : last + 1]
    for true, values in counts.items():
        if values.any():
            axes.stairs(
                values[first:last] / values.sum(), edges, color=style.class_colours(classes)[true],
                linestyle=style.class_dashes(classes)[true], linewidth=1.6, label=true,
            )  # fmt: skip
    if axis.scale == "log":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif axis.scale == "asinh":
        axes.set_xscale("asinh", linear_width=axis.unit)
        axes.xaxis.set_major_locator(AsinhLocator(axis.unit, numticks=6))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x:g}" if abs(x) > axis.unit or not x else "")
        )
        axes.xaxis.set_minor_locator(NullLocator())
    elif axis.bins <= 20:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlim=(edges[0], edges[-1]), xlabel=input_label(name), ylabel=f"fraction of {_counted(name)}")
    if axis.bins > 20 and axes.dataLim.ymax > _PILED_UP:
        _logarithmic(axes)
    else:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.2)
    _legend_above(axes)
    return figure


def input_label(name: str) -> str:
    """Give the axis title of a histogram."""
    kind, _, feature = name.partition(".")
    return (FEATURE_LABELS if kind == "hlf" else PARTICLE_LABELS).get(feature, feature)


def series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[FloatArray, FloatArray]:
    """Return epochs and values of one quantity, float (e,) each, without the epochs that lack it."""
    pairs = [
        (float(entry.get("epoch", place)), float(entry[key]))
        for place, entry in enumerate(history, start=1)
        if entry.get(key) is not None and np.isfinite(entry[key])
    ]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _counted(name: str) -> str:
    return "events" if name.startswith("hlf.") else "particles"


def _with_ends(counts: Sequence[int]) -> NDArray[np.int64]:
    """Add what lies beyond the axis to the bins at its ends."""
    bins = np.array(counts[1:-1], np.int64)
    bins[0] += counts[0]
    bins[-1] += counts[-1]
    return bins


def _occupied(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Find the range of bins outside which there is nothing, half open; all of them where all are empty."""
    filled = np.flatnonzero(counts)
    return (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(counts))


def _row(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side."""
    width, height = style.PANEL
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _line(models: Sequence[str], model: str) -> dict[str, Any]:
    """Return the line style of a model."""
    return {"linestyle": style.MODEL_DASHES[models.index(model) % len(style.MODEL_DASHES)]}


def _marker(models: Sequence[str], model: str) -> dict[str, Any]:
    """Return the marker of a model."""
    return {"marker": style.MODEL_MARKERS[models.index(model) % len(style.MODEL_MARKERS)], "ms": 4.5}


def _roc_label(model: str, curve: RocCurve) -> str:
    """Return the legend of a curve: the model and its area."""
    return f"{model}  {number_format.with_error(curve.auc, curve.auc_error)}"


def _thinned(curve: RocCurve) -> tuple[FloatArray, FloatArray]:
    """Keep the points of a curve that a picture can show, on a linear and on a logarithmic scale."""
    fpr, tpr = curve.fpr, curve.tpr
    floor = 1 / max(len(fpr), 2)
    scales = (fpr, tpr, np.log(np.maximum(fpr, floor)) / np.log(1 / floor))
    kept = {0, len(fpr) - 1}
    for values in scales:
        bins = np.floor(values * _ROC_POINTS)
        kept.update(np.flatnonzero(np.diff(bins, prepend=-np.inf)).tolist())
    chosen = sorted(kept)
    return fpr[chosen], tpr[chosen]


def _marks(curve: RocCurve) -> tuple[list[float], list[float]]:
    """Return the working points of a curve, without those at which no background is left."""
    places = [int(np.searchsorted(curve.tpr, target)) for target in TRUE_POSITIVE_RATES]
    seen = [at for at in places if curve.fpr[at] > 0]
    return [float(curve.tpr[at]) for at in seen], [float(curve.fpr[at]) for at in seen]


def _cell(axes: Axes, row: int, column: int, count: int, fraction: float | None) -> None:
    """Draw one cell: the deeper the colour, the larger the fraction; pale enough to read on."""
    shade = 0.04 + 0.5 * (fraction or 0.0)
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=style.PALETTE[0], alpha=shade, lw=0))
    axes.text(
        column, row - 0.1, number_format.share(fraction), ha="center", va="center", weight="bold", size=12
    )
    axes.text(column, row + 0.16, number_format.count(count), ha="center", va="center", size=9.5)


def _step(axes: Axes, values: FloatArray, edges: FloatArray, colour: str, dashes: Any, label: str) -> None:
    """Draw a histogram as an outline of unit area; what lies outside goes to the bins at the ends."""
    if not len(values):
        return
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    axes.stairs(counts / len(values), edges, color=colour, linestyle=dashes, linewidth=1.6, label=label)


def _logarithmic(axes: Axes) -> None:
    """Make the scale of a histogram of fractions logarithmic, with room for the legend above."""
    axes.set_yscale("log")
    axes.set_ylim(top=axes.get_ylim()[1] * 5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value <= 1 else ""))


def _legend_above(axes: Axes) -> None:
    """Put the legend of a histogram into the room above it; where names are long, above the axes."""
    handles, names = axes.get_legend_handles_labels()
    if sum(len(name) + 3 for name in names) <= _LINE:
        axes.legend(loc="upper center", ncols=3, columnspacing=1.2)
    else:
        folded = [_folded(name, _LINE) for name in names]
        axes.legend(handles, folded, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _against_the_rest(name: str) -> str:
    """Return the title of the ROC curves of a class."""
    return _folded(f"{name} against the rest", _LINE)


def _folded(name: str, width: int) -> str:
    """Break a long name into lines, behind blanks, underscores and hyphens where there are any."""
    lines = [""]
    for word in re.findall(rf"[^\s_-]{{1,{width}}}[\s_-]*|[\s_-]+", name):
        if lines[-1] and len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def _feature_edges(values: FloatArray) -> FloatArray:
    """Choose bins: one for each whole number where there are only a few, else the central 99 %."""
    if not len(values):
        return np.array([0.0, 1.0])
    distinct = np.unique(values)
    if len(distinct) <= 2 * _FEATURE_BINS and np.array_equal(distinct, np.round(distinct)):
        top = max(float(np.quantile(values, 0.999)), distinct[0])
        return np.arange(distinct[0] - 0.5, np.floor(top) + 1, 1.0)
    low, high = np.quantile(values, [0.0, 0.995]) if distinct[0] >= 0 else np.quantile(values, [0.002, 0.998])
    return np.linspace(low, high if high > low else low + 1, _FEATURE_BINS + 1)
