"""What labels and scores say about a classifier, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, roc_auc_score, roc_curve

from hepdask.evaluation.delong import auc_standard_error

TRUE_POSITIVE_RATES = (0.90, 0.95, 0.99)
"""Working points at which a selection by score is quoted."""

AUC_ERROR_METHOD = "DeLong standard error"

_SUM_TOLERANCE = 1e-3


def classification_metrics(labels: ArrayLike, scores: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Measure a classifier on events of known class.

    Parameters
    ----------
    labels : int (n,)
        True class of each event, as an index into `classes`.
    scores : float (n, c)
        Score of each event for each class; the class with the highest score is the predicted one, the
        first of them where several are equal.
    classes : sequence of str (c,)
        Names of the classes, at least two.

    Returns
    -------
    dict
        Ready for JSON: None stands wherever a number is not defined, with the reason beside it.

        - ``events``, ``events_by_class``: counts;
        - ``accuracy``: fraction of events whose predicted class is the true one;
        - ``log_loss``, ``log_loss_reason``: mean of −ln(score of the true class), natural logarithm, scores
          clipped at the machine epsilon of their type; None unless the scores are probabilities;
        - ``mean_auc``: mean over the classes whose AUC is defined;
        - ``auc_error_method``: how ``auc_error`` was estimated;
        - ``confusion_matrix``: counts, c rows (true class) of c columns (predicted class);
        - ``classes``: for each class, against the rest, ``auc``, ``auc_error``, ``reason`` and
          ``working_points``, a list of ``true_positive_rate`` (asked), ``threshold``,
          ``false_positive_rate`` and ``rate_reduction`` (1 / false-positive rate; None where no event of
          the other classes passes). The threshold is the highest score at which at least that fraction of
          the class passes ``score >= threshold``.

    Raises
    ------
    ValueError
        If there is no event, the shapes disagree, a label is no class, or a score is NaN or infinite.
    """
    truth, values = _checked(labels, scores, len(classes))
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names must differ, got {list(classes)}")
    loss, loss_reason = _log_loss(truth, values)
    by_class = {name: _one_against_rest(truth, values, k, name) for k, name in enumerate(classes)}
    defined = [entry["auc"] for entry in by_class.values() if entry["auc"] is not None]
    counts = np.bincount(truth, minlength=len(classes))
    predicted = values.argmax(axis=1)
    return {
        "events": len(truth),
        "events_by_class": {name: int(count) for name, count in zip(classes, counts, strict=True)},
        "accuracy": float(accuracy_score(truth, predicted)),
        "log_loss": loss,
        "log_loss_reason": loss_reason,
        "mean_auc": float(np.mean(defined)) if defined else None,
        "auc_error_method": AUC_ERROR_METHOD,
        "confusion_matrix": confusion_matrix(truth, predicted, labels=range(len(classes))).tolist(),
        "classes": by_class,
    }


def roc(labels: ArrayLike, scores: ArrayLike, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the ROC curve of one class against the rest.

    Parameters
    ----------
    labels : int (n,)
        True class of each event.
    scores : float (n, c)
        Score of each event for each class.
    k : int
        The class.

    Returns
    -------
    fpr, tpr : float64 (t,), float64 (t,)
        False- and true-positive rate at each distinct score, from (0, 0) to (1, 1).

    Raises
    ------
    ValueError
        As `classification_metrics`, and if `k` is no class, is missing, or is the only one with events.
    """
    truth, values = _checked(labels, scores, np.shape(scores)[-1] if np.ndim(scores) == 2 else 0)
    if not 0 <= k < values.shape[1]:
        raise ValueError(f"class {k} is not one of the {values.shape[1]} columns of the scores")
    reason = _undefined(truth == k, f"class {k}")
    if reason:
        raise ValueError(f"no ROC curve: {reason}")
    fpr, tpr, _ = roc_curve(truth == k, values[:, k], drop_intermediate=False)
    return fpr.astype(np.float64), tpr.astype(np.float64)


def _checked(
    labels: ArrayLike, scores: ArrayLike, width: int
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Return labels and scores as arrays, or say what is wrong with them."""
    truth, values = np.asarray(labels), np.asarray(scores)
    if truth.ndim != 1:
        raise ValueError(f"labels must have shape (n,), got {truth.shape}")
    if values.ndim != 2:
        raise ValueError(f"scores must have shape (n, classes), got {values.shape}")
    if len(truth) != len(values):
        raise ValueError(f"{len(truth)} labels do not fit {len(values)} rows of scores")
    if values.shape[1] != width:
        raise ValueError(f"scores have {values.shape[1]} columns for {width} classes")
    if width < 2:
        raise ValueError(f"at least two classes are needed, got {width}")
    if len(truth) == 0:
        raise ValueError("there is no event to evaluate")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {truth.dtype}")
    _check_values(truth, values)
    kept = np.float32 if values.dtype in (np.float16, np.float32) else np.float64
    return truth.astype(np.int64), values.astype(kept, copy=False)


def _check_values(truth: NDArray[np.integer], values: NDArray[Any]) -> None:
    """Refuse labels outside the classes and scores that are not finite."""
    width = values.shape[1]
    outside = (truth < 0) | (truth >= width)
    if outside.any():
        found = np.unique(truth[outside])[:5].tolist()
        raise ValueError(f"labels must lie in 0 to {width - 1}, got {found}")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"scores must be real numbers, got {values.dtype}")
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise ValueError(
            f"scores of {int(broken.sum())} events are NaN or infinite, the first in row {first}"
        )


def _log_loss(truth: NDArray[np.int64], values: NDArray[np.floating]) -> tuple[float | None, str | None]:
    """Return the log loss, or None and why the scores are not probabilities."""
    if values.min() < 0:
        return None, "a score is negative, so the scores are not probabilities"
    total = values.sum(axis=1, keepdims=True)
    if np.abs(total - 1).max() > _SUM_TOLERANCE:
        return None, "the scores of an event do not sum to 1, so they are not probabilities"
    return float(log_loss(truth, values / total, labels=range(values.shape[1]))), None


def _one_against_rest(
    truth: NDArray[np.int64], values: NDArray[np.floating], k: int, name: str
) -> dict[str, Any]:
    """Return AUC, its error and the working points of class `k`."""
    of_class, column = truth == k, values[:, k]
    reason = _undefined(of_class, f"class {name}")
    if reason:
        return {"auc": None, "auc_error": None, "reason": reason, "working_points": []}
    error = auc_standard_error(column[of_class], column[~of_class])
    return {
        "auc": float(roc_auc_score(of_class, column)),
        "auc_error": error,
        "reason": None
        if error is not None
        else f"a single event on one side gives no error of the AUC of class {name}",
        "working_points": _working_points(of_class, column),
    }


def _undefined(of_class: NDArray[np.bool_], name: str) -> str | None:
    """Say why a class cannot be told from the rest, if it cannot."""
    if not of_class.any():
        return f"the sample holds no event of {name}"
    if of_class.all():
        return f"the sample holds no event other than those of {name}"
    return None


def _working_points(
    of_class: NDArray[np.bool_], column: NDArray[np.floating]
) -> list[dict[str, float | None]]:
    """Return the false-positive rate where each of the true-positive rates is first reached."""
    fpr, tpr, thresholds = roc_curve(of_class, column, drop_intermediate=False)
    points: list[dict[str, float | None]] = []
    for target in TRUE_POSITIVE_RATES:
        at = int(np.searchsorted(tpr, target))
        rate = float(fpr[at])
        points.append(
            {
                "true_positive_rate": target,
                "threshold": float(thresholds[at]),
                "false_positive_rate": rate,
                "rate_reduction": 1 / rate if rate > 0 else None,
            }
        )
    return points
