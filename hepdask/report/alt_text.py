"""What each figure shows, in words, for readers who cannot see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.histograms import axis_of
from hepdask.evaluation.calibration import Calibration
from hepdask.report import number_format
from hepdask.report.plots import FEATURE_LABELS, RocCurve, input_label, series


def roc(name: str, curves: Mapping[str, RocCurve]) -> str:
    """Describe the ROC curves of one class: the areas, model by model."""
    areas = (f"{model} {number_format.with_error(c.auc, c.auc_error)}" for model, c in curves.items())
    return f"ROC curves of {name} against the rest. Area under the curve: {'; '.join(areas)}."


def roc_log(name: str, metrics: Mapping[str, dict[str, Any]]) -> str:
    """Describe the logarithmic ROC curves of one class by the false-positive rates at the working points."""
    parts = []
    for model, entry in metrics.items():
        rates = (
            f"{number_format.percent(p['false_positive_rate'])} at {number_format.percent(p['true_positive_rate'])}"
            for p in entry["classes"][name]["working_points"]
        )
        parts.append(f"{model} {', '.join(rates)}")
    return f"False-positive rate against true-positive rate for {name}. {'; '.join(parts)}."


def confusion(model: str, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Describe a confusion matrix row by row."""
    rows = []
    for name, counts in zip(classes, matrix, strict=True):
        total = sum(counts)
        if not total:
            rows.append(f"no event of {name}")
            continue
        shares = (
            f"{number_format.percent(n / total)} as {other}" for other, n in zip(classes, counts, strict=True)
        )
        rows.append(f"{name} is classified {', '.join(shares)}")
    return f"Confusion matrix of {model}: {'; '.join(rows)}."


def learning_curve(model: str, history: Sequence[Mapping[str, Any]], quantity: str) -> str:
    """Describe a learning curve by its ends and the best epoch of the validation."""
    sentences = [f"{quantity.capitalize()} of {model} by epoch."]
    for key, label in ((quantity, "Training"), (f"val_{quantity}", "Validation")):
        epochs, values = series(history, key)
        if not len(values):
            continue
        best = int(np.argmin(values) if quantity == "loss" else np.argmax(values))
        sentences.append(
            f"{label} goes from {values[0]:.3g} to {values[-1]:.3g}, "
            f"best {values[best]:.3g} in epoch {epochs[best]:g}."
        )
    return " ".join(sentences)


def scores(
    model: str, name: str, labels: NDArray[np.integer], column: NDArray[np.floating], classes: Sequence[str]
) -> str:
    """Describe a score's distribution by its median in every true class."""
    medians = _medians({true: column[labels == k] for k, true in enumerate(classes)})
    return f"Distribution of {model}'s score for {name} by true class. Median: {medians}."


def calibration(model: str, curves: Mapping[str, Calibration]) -> str:
    """Describe reliability curves by how far scores are from frequencies."""
    errors = ", ".join(
        f"{name} {number_format.percent(curve.expected_error)}" for name, curve in curves.items()
    )
    return (
        f"Fraction of each class against {model}'s score for it. Mean distance from the diagonal: {errors}."
    )


def importances(model: str, values: Mapping[str, float]) -> str:
    """Describe the worth of the features by the five most important ones."""
    best = sorted(values, key=lambda name: -values[name])[:5]
    shown = ", ".join(f"{name} {values[name]:.4f}" for name in best)
    return f"Mean AUC that {model} loses when a feature is shuffled. Largest: {shown}."


def feature(name: str, values: Mapping[str, NDArray[np.floating]]) -> str:
    """Describe a feature's distribution by its median in every class."""
    finite = {true: np.asarray(v)[np.isfinite(v)] for true, v in values.items()}
    return f"Distribution of {FEATURE_LABELS.get(name, name)} by class. Median: {_medians(finite)}."


def histogram(name: str, by_class: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe a histogram by the bin that holds each class's median, and by what lies beyond its axis."""
    sentences = [f"Distribution of {input_label(name)} by class."]
    for true, found in by_class.items():
        counts = np.array(found["counts"])
        if not counts.sum():
            sentences.append(f"{true} is empty.")
            continue
        edges = np.concatenate(([-np.inf], axis_of(found).edges(), [np.inf]))
        middle = int(np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2))
        beyond = (counts[0] + counts[-1]) / counts.sum()
        sentences.append(
            f"{true}: median from {edges[middle]:.3g} to {edges[middle + 1]:.3g}, "
            f"{number_format.percent(beyond)} beyond the axis."
        )
    return " ".join(sentences)


def _medians(values: Mapping[str, NDArray[np.floating]]) -> str:
    """Return the median of every class, or that it has no event."""
    return ", ".join(
        f"{name} {np.median(v):.3g}" if len(v) else f"{name} without events" for name, v in values.items()
    )
