"""Random forests of scikit-learn, or of cuML on a GPU, kept as plain arrays."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.config import Forest as Settings
from hepdask.models.trees import devices
from hepdask.models.trees.fitted import Fitted, Forest
from hepdask.models.trees.rows import Rows


def grow(rows: Rows, classes: int, settings: Settings, seed: int, threads: int) -> Fitted:
    """Grow a forest on events that are in memory.

    Parameters
    ----------
    rows : Rows
        The events.
    classes : int
        Columns of the scores; classes without events get the score 0.
    settings : Forest
        Section `models.forest` of the configuration.
    seed : int
        The forest follows from it, whatever the number of threads.
    threads : int
        How many grow trees at once; a GPU does not look at it.

    Raises
    ------
    TrainingError
        `settings.device` is ``"cuda"``, and something is missing for it.
    """
    begin = time.thread_time() if threads == 1 else time.process_time()
    if settings.device == "cuda":
        devices.require_cuml({"": devices.missing_for_cuml()})
        model, importances = _on_gpu(rows, settings, seed)
        engine_name = "cuML on a GPU of one worker"
    else:
        model = _on_cpu(rows, settings, seed, threads)
        importances = np.asarray(model.feature_importances_, np.float64)
        engine_name = f"scikit-learn on {threads} thread{'s' * (threads > 1)} of one worker"
    trees = [tree.tree_ for tree in model.estimators_]
    nodes = np.array([tree.node_count for tree in trees], np.int64)
    root = np.cumsum(nodes) - nodes
    value = np.zeros((nodes.sum(), classes), np.float32)
    value[:, model.classes_] = np.concatenate([tree.value[:, 0, :] for tree in trees])
    feature = np.concatenate([tree.feature for tree in trees])
    forest = Forest(
        root,
        np.where(feature < 0, -1, feature).astype(np.int32),
        np.concatenate([tree.threshold for tree in trees]),
        np.concatenate([tree.children_left + first for tree, first in zip(trees, root, strict=True)]),
        np.concatenate([tree.children_right + first for tree, first in zip(trees, root, strict=True)]),
        value,
    )
    taken = (time.thread_time() if threads == 1 else time.process_time()) - begin
    return Fitted(forest.to_bytes(), [], importances, len(trees), int(nodes.sum()), engine_name, taken)


def _on_cpu(rows: Rows, settings: Settings, seed: int, threads: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(
        n_estimators=settings.trees, max_depth=settings.max_depth, min_samples_leaf=settings.min_leaf,
        max_features=settings.feature_share or "sqrt", random_state=seed, n_jobs=threads,
    )  # fmt: skip
    return model.fit(rows.features, rows.label, rows.weight)


def _on_gpu(rows: Rows, settings: Settings, seed: int) -> tuple[Any, NDArray[np.float64]]:
    """Grow with cuML; give the forest as one of scikit-learn, and the importances, which do not go over with it."""
    from cuml.ensemble import RandomForestClassifier

    weights = {int(k): float(rows.weight[rows.label == k][0]) for k in np.unique(rows.label)}
    model = RandomForestClassifier(
        n_estimators=settings.trees, max_depth=settings.max_depth, min_samples_leaf=settings.min_leaf,
        max_features=settings.feature_share or "sqrt", random_state=seed, output_type="numpy",
        n_streams=1,  # with more, the same seed gives other trees each time
        class_weight=weights if set(weights.values()) != {1.0} else None,
    )  # fmt: skip
    model.fit(rows.features, rows.label.astype(np.int32))
    return model.as_sklearn(), np.asarray(model.feature_importances_, np.float64)
