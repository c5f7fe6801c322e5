"""One setting tried on some folds, in a task of a Dask worker."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepdask import models
from hepdask.config import HLF, Config, Forest
from hepdask.errors import HepdaskError, TrainingError
from hepdask.kernels.dense import records
from hepdask.models.trees import Rows, boosted, forest, load_rows, load_trees
from hepdask.store import open_store
from hepdask.tuning import kernel_trial

#: Most letters of a reason.
_LONGEST = 500

_loading = threading.Lock()


@dataclass(frozen=True)
class Tried:
    """What some folds gave.

    Attributes
    ----------
    values : list of float
        The metric of each fold.
    cpu_s : float
        CPU time [s].
    reason : str or None
        Why it could not be tried on all of them.
    """

    values: list[float]
    cpu_s: float
    reason: str | None = None


def try_folds(
    config: Config, model: str, path: Path, fingerprint: str, columns: Sequence[int], folds: Sequence[int]
) -> Tried:
    """Train a model without each of some folds, and measure it on that fold; whatever goes wrong is told, not raised.

    Parameters
    ----------
    config : Config
        With the settings to try.
    model : str
        ``"hlf"``, or one of `models.TREES`.
    path : Path
        The store.
    fingerprint : str
        Of the store: workers keep its events in memory while it is the same.
    columns : sequence of int
        High-level features the model takes.
    folds : sequence of int
        Which of `config.tuning.folds`.
    """
    begin, values = time.thread_time(), []
    try:
        for value in _values(config, model, path, fingerprint, columns, folds):
            values.append(value)  # noqa: PERF402  those before an error stay
    except Exception as error:
        return Tried(values, time.thread_time() - begin, reason_of(error))
    return Tried(values, time.thread_time() - begin)


def reason_of(error: BaseException) -> str:
    """Say in a line why a setting could not be tried."""
    cause = error.__cause__ if isinstance(error.__cause__, HepdaskError) else error
    words = str(cause) if isinstance(cause, HepdaskError) else f"{type(cause).__name__}: {cause}"
    return words[:_LONGEST]


def _values(
    config: Config, model: str, path: Path, fingerprint: str, columns: Sequence[int], folds: Sequence[int]
) -> Iterator[float]:
    sample = _sample(path, fingerprint, config.tuning.folds)
    features = sample.scaled if model == "hlf" else sample.features
    weight = _class_weights(config, sample.classes)[sample.label]
    rows = Rows(np.ascontiguousarray(features[:, list(columns)]), sample.label, weight)
    train = _train_dense if model == "hlf" else _train_trees
    for fold in folds:
        inside = sample.fold == fold
        if inside.all() or not inside.any():
            raise TrainingError(
                f"fold {fold} of {config.tuning.folds} has no event, or all of them; lower tuning.folds"
            )
        scores = train(config, model, rows, np.flatnonzero(~inside), np.flatnonzero(inside), sample.classes)
        yield _metric(config.tuning.metric, scores, sample.label[inside])


@dataclass(frozen=True)
class _Sample:
    features: NDArray[np.float32]
    scaled: NDArray[np.float32]
    label: NDArray[np.int64]
    fold: NDArray[np.int64]
    classes: tuple[str, ...]


def _class_weights(config: Config, classes: Sequence[str]) -> NDArray[np.float32]:
    return np.array([config.training.class_weights.get(name, 1.0) for name in classes], np.float32)


def _sample(path: Path, fingerprint: str, folds: int) -> _Sample:
    with _loading:  # threads of one worker share what one of them loads
        return _load(path, fingerprint, folds)


@functools.lru_cache(maxsize=1)
def _load(path: Path, fingerprint: str, folds: int) -> _Sample:
    store = open_store(path)
    if store.fingerprint != fingerprint:
        raise TrainingError(f"{path}: the store changed during the search")
    rows = load_rows(store, "train", range(len(store.features["hlf"])))
    scaled = store.high_level_scaler(rows.features)
    return _Sample(rows.features, scaled, rows.label, store.folds(folds), tuple(store.classes))


def _train_dense(
    config: Config,
    model: str,
    rows: Rows,
    inside: NDArray[np.int64],
    outside: NDArray[np.int64],
    classes: Sequence[str],
) -> NDArray[np.float32]:
    settings: HLF = models.settings(model, config.models)
    packed = records(rows.features, rows.label)
    weights = _class_weights(config, classes)
    stack = kernel_trial.train(
        packed, inside, weights, settings, rows.features.shape[1], config.training.seed
    )
    return stack.scores(packed, outside)


def _train_trees(
    config: Config,
    model: str,
    rows: Rows,
    inside: NDArray[np.int64],
    outside: NDArray[np.int64],
    classes: Sequence[str],
) -> NDArray[np.float32]:
    settings, seed = models.settings(model, config.models), config.training.seed
    fit = Rows(rows.features[inside], rows.label[inside], rows.weight[inside])
    held = Rows(rows.features[outside], rows.label[outside], rows.weight[outside])
    if isinstance(settings, Forest) and settings.library == "sklearn":
        fitted = forest.grow(fit, len(classes), settings, seed, threads=1)
    else:
        fitted = boosted.boost(fit, held, len(classes), settings, seed)
    return load_trees(fitted.file).scores(held.features)


def _metric(metric: str, scores: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    if metric == "accuracy":
        return float((scores.argmax(axis=1) == label).mean())
    return float(-np.log(np.maximum(scores[np.arange(len(label)), label], 1e-7)).mean())
