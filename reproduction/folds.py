"""Cross-validation: every event is scored by a model that was trained without its fold, and so without its parent.

What a fold gave is kept in a file, so that an interrupted run goes on where it stopped, and more seeds only add to it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepdask import models
from hepdask.config import Config
from hepdask.files.atomic import digest, write_bytes
from hepdask.models.record import ModelRecord, Scaling, Scalings, file_digest
from hepdask.store import Store, open_store

logger = logging.getLogger("hepdask.reproduction")

#: Networks share the machine with each other: each takes one core.
_ONE_THREAD = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


@dataclass(frozen=True)
class Scored:
    """What cross-validation of one model with one seed gave.

    Attributes
    ----------
    scores : float32 (n, n_classes)
        Of each event of the sample ``"train"``, from the model that did not see its fold.
    histories : list of list of dict
        Loss by epoch of each fold; ``val_loss`` is that of the fold that was left out.
    cpu_s : float
        CPU time of training [s].
    """

    scores: NDArray[np.float32]
    histories: list[list[dict[str, float]]]
    cpu_s: float


@dataclass(frozen=True)
class Task:
    """One training: a model of a configuration, without one of so many folds."""

    config: Config
    model: str
    fold: tuple[int, int]

    def file(self, folder: Path, store: Store) -> Path:
        """Say where its scores are kept; the name changes with everything they depend on."""
        settings = models.settings(self.model, self.config.models).model_dump(mode="json")
        key = digest(
            [
                store.fingerprint,
                store.manifest["split"],
                self.model,
                settings,
                self.config.training.seed,
                self.fold,
            ]
        )
        return folder / f"{self.model}-{key[:16]}.npz"


def cross_validate(
    configs: Sequence[Config], model: str, folds: int, folder: Path, processes: int
) -> list[Scored]:
    """Score every training event with a model that did not see it.

    Parameters
    ----------
    configs : sequence of Config
        What is trained, once for each: they differ in the seed. All have one finished store.
    model : str
        A key of `models`.
    folds : int
        Number of folds; events of one parent share one.
    folder : Path
        Where scores of finished folds are kept.
    processes : int
        How many folds are trained at once.
    """
    store = open_store(configs[0].store_path)
    tasks = [Task(config, model, (fold, folds)) for config in configs for fold in range(folds)]
    missing = [task for task in tasks if not task.file(folder, store).exists()]
    for name in _ONE_THREAD:
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if missing:
        with ProcessPoolExecutor(min(processes, len(missing)), get_context("spawn")) as pool:
            waiting = {pool.submit(_train_and_score, task): task for task in missing}
            for done, future in enumerate(as_completed(waiting), 1):
                write_bytes(waiting[future].file(folder, store), future.result())
                logger.info(f"{model}: {done} of {len(missing)} folds trained")
    fold_of = store.folds(folds)
    found = []
    for config in configs:
        scores = np.full((len(fold_of), len(store.classes)), np.nan, np.float32)
        histories, cpu = [], 0.0
        for fold in range(folds):
            with np.load(Task(config, model, (fold, folds)).file(folder, store)) as kept:
                scores[fold_of == fold] = kept["scores"]
                histories.append(json.loads(str(kept["history"])))
                cpu += float(kept["cpu_s"])
        found.append(Scored(scores, histories, cpu))
    return found


def _train_and_score(task: Task) -> bytes:
    train = _trees if task.model in models.TREES else _network
    scores, history, cpu = train(task)
    file = io.BytesIO()
    np.savez(file, scores=scores, history=json.dumps(history), cpu_s=cpu)
    return file.getvalue()


def _network(task: Task) -> tuple[NDArray[np.float32], list[dict[str, float]], float]:
    from hepdask.inference.network_scorer import NetworkScorer
    from hepdask.training.loop import train_rank

    config, store = task.config, open_store(task.config.store_path, task.fold)
    begin = time.process_time()
    with redirect_stdout(io.StringIO()):  # a rank tells its driver of every step; there is none
        trained = train_rank(task.model, config, config.store_path, fold=task.fold)
    cpu = time.process_time() - begin
    assert trained is not None, "there is one rank"
    particles = store.particle_scaler
    record = ModelRecord(
        key="", model=task.model, file="model.keras", file_digest=file_digest(trained.keras_file),
        classes=tuple(store.classes), inputs=models.inputs(task.model, config.models, store.features["hlf"]),
        settings=models.settings(task.model, config.models).model_dump(mode="json"), study=None,
        analysis=config.analysis.model_dump(mode="json"), code=(), imported=store.imported,
        mantissa_bits=config.store.mantissa_bits,
        scaling=Scalings(
            high_level=Scaling.of(store.high_level_scaler),
            particles=Scaling.of(particles) if particles else None,
        ),
        history=trained.history, importances={}, facts={},
    )  # fmt: skip
    network = NetworkScorer(trained.keras_file, record, f"fold {task.fold} of {task.model}")
    return network.scores(store.events("validation")), trained.history, cpu


def _trees(task: Task) -> tuple[NDArray[np.float32], list[dict[str, float]], float]:
    from hepdask.models.trees import boosted, forest, load_rows, load_trees

    settings = models.settings(task.model, task.config.models)
    store = open_store(task.config.store_path, task.fold)
    columns = models.inputs(task.model, task.config.models, store.features["hlf"])["high_level"]
    fit, held = (load_rows(store, sample, columns) for sample in ("fit", "validation"))
    seed, classes = task.config.training.seed, len(store.classes)
    if task.model == "forest":
        fitted = forest.grow(fit, classes, settings, seed, threads=1)
    else:
        fitted = boosted.boost(fit, held, classes, settings, seed)
    return load_trees(fitted.file).scores(held.features), fitted.history, fitted.cpu_s
