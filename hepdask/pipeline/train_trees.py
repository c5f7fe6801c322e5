"""Training and scoring trees on a cluster: their part of `train` and `evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, get_worker
from numpy.typing import NDArray

from hepdask import clusters, models
from hepdask.clusters.task_pool import completed
from hepdask.config import Config, Forest
from hepdask.inference import importance
from hepdask.inference.tree_scorer import TreeScorer
from hepdask.models.record import ModelRecord
from hepdask.models.trees import boosted, devices, fitted, forest
from hepdask.models.trees.fitted import Fitted
from hepdask.models.trees.rows import Rows, load_rows, shared_out
from hepdask.pipeline.outcome import Outcome
from hepdask.pipeline.rank_options import rank_options
from hepdask.store import Store, open_store
from hepdask.store.reader import Sample
from hepdask.training.loop import RankScores

logger = logging.getLogger(__name__)

#: Parts that one task scores.
_PARTS = 16


def train(name: str, key: str, store: Store, config: Config, client: Client) -> Outcome:
    """Train a model of `models.TREES` on the store.

    Raises
    ------
    MissingDependency
        XGBoost is not installed.
    TrainingError
        There is nothing to watch for early stopping, or something is missing for a GPU that is asked for.
    hepdask.distributed.RankFailed
        A rank of XGBoost died more often than `training.restarts` allows, or raised an error, which is the cause: a
        feature is not finite, or a parameter is refused.
    """
    settings = models.settings(name, config.models)
    if not (isinstance(settings, Forest) and settings.library == "sklearn"):
        fitted.xgboost()
    columns = models.inputs(name, config.models, store.features["hlf"])["high_level"]
    training = config.training
    weights = class_weights(store, config)
    with clusters.reserved(client, training.ranks, training.cores_per_rank, training.gpus_per_rank):
        if isinstance(settings, Forest) and settings.library == "sklearn":
            where = None
            if settings.device == "cuda":
                found = client.run(devices.missing_for_cuml)
                where = [devices.require_cuml(found)]
            grown: Fitted = _one(
                client, _grow, store.path.absolute(), columns, weights, settings, training.seed,
                name="grow-forest", worker_timeout=config.store.worker_timeout, workers=where,
            )  # fmt: skip
        else:
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            counts = {"fit": store.counts("fit"), "validation": store.counts("validation")}
            runs = {sample: shared_out(count, workers) for sample, count in counts.items()}
            options = replace(
                rank_options(training), log_dir=config.folder / "models" / name / "logs",
                on_output=lambda rank, line: logger.info(f"[{name} rank {rank}] {line}"),
                on_status=lambda line: logger.info(f"{name}: {line}"),
            )  # fmt: skip
            grown = boosted.boost_over(
                client, partial(_load, store.path.absolute(), columns, weights), runs, len(store.classes), settings,
                training.seed, options,
            )  # fmt: skip
    for row in grown.history[-1:]:
        watched = (
            f", val_loss {row['val_loss']:.4f}, val_accuracy {row['val_accuracy']:.4f}"
            if "val_loss" in row
            else ""
        )
        logger.info(
            f"{name}: {len(grown.history)} rounds, loss {row['loss']:.4f}, accuracy {row['accuracy']:.4f}{watched}"
        )
    names = [store.features["hlf"][column] for column in columns]
    order = np.argsort(-grown.importances, kind="stable")
    importances = {names[place]: float(grown.importances[place]) for place in order}
    facts = {
        "trees": grown.trees,
        "nodes": grown.nodes,
        "cpu_s": grown.cpu_s,
        "computed by": grown.engine_name,
        "importances": [f"{feature} {share:.3f}" for feature, share in importances.items()],
    }
    file_name = "model.npz" if grown.file.startswith(b"PK") else "model.ubj"
    return Outcome(file_name, grown.file, grown.history, facts, importances)


def score(file: bytes, record: ModelRecord, store: Store, config: Config, client: Client) -> RankScores:
    """Score all events with trained trees, and shuffle their features: what ranks do for networks."""
    before = clusters.cpu_seconds(client)
    test, fit = (_scores(sample, file, record, store, config, client) for sample in ("test", "fit"))
    lost = _one(
        client, _importances, store.path.absolute(), file, record,
        name="importances", worker_timeout=config.store.worker_timeout,
    )  # fmt: skip
    return RankScores(test, fit, lost, clusters.cpu_seconds(client) - before)


def _one(client: Client, function: Callable[..., Any], path: Path, *arguments: Any, **options: Any) -> Any:
    """Run a function once on a worker, with the bounds of `completed`."""
    ((_, result),) = completed(client, function, [path], *arguments, **options)
    return result


def _scores(
    sample: Sample, file: bytes, record: ModelRecord, store: Store, config: Config, client: Client
) -> NDArray[np.float32]:
    parts = np.flatnonzero(store.counts(sample)).tolist()
    blocks = [parts[first : first + _PARTS] for first in range(0, len(parts), _PARTS)]
    found = completed(
        client, _score, blocks, store.path.absolute(), sample, file, record,
        name="score-trees", worker_timeout=config.store.worker_timeout,
    )  # fmt: skip
    scores = {tuple(block): result for block, result in found}
    return np.concatenate([scores[tuple(block)] for block in blocks])


def class_weights(store: Store, config: Config) -> NDArray[np.float64] | None:
    """Weight of each class in the loss; None where all are 1."""
    given = config.training.class_weights
    return np.array([given.get(label, 1.0) for label in store.classes]) if given else None


def _load(
    path: Path, columns: list[int], weights: NDArray[Any] | None, sample: Sample, parts: Sequence[int]
) -> Rows:
    return load_rows(path, sample, columns, weights if sample == "fit" else None, list(parts))


def _grow(
    path: Path, columns: list[int], weights: NDArray[Any] | None, settings: Forest, seed: int
) -> Fitted:
    store = open_store(path)
    rows = load_rows(store, "fit", columns, weights)
    return forest.grow(rows, len(store.classes), settings, seed, get_worker().state.nthreads)


def _score(
    parts: list[int], path: Path, sample: Sample, file: bytes, record: ModelRecord
) -> NDArray[np.float32]:
    trees = TreeScorer(file, record, record.file).trees
    return trees.scores(load_rows(path, sample, record.inputs["high_level"], parts=parts).features)


def _importances(path: Path, file: bytes, record: ModelRecord) -> dict[str, float]:
    store = open_store(path)
    high_level = store.features["hlf"]
    chosen = importance.features(record.inputs, high_level, ())
    return importance.importances(
        TreeScorer(file, record, record.file), importance.sample(store), chosen, high_level, store.classes
    )
