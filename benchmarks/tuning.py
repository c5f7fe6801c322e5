"""How many settings an hour a search tries: against scikit-learn's GridSearchCV over a plain Keras wrapper.

Both sides search the same grid of dense networks on the same events with the same folds, epochs and batch size, one
process a core. Ours is `hepdask.tune` on a local cluster, from its call to its result, journal and all; the peer is
`GridSearchCV(n_jobs=cores)`, whose processes stay between rounds. Both are warmed up by one round that does not count:
then processes are up, and TensorFlow is loaded. A setting costs the peer far more, so it tries fewer of them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# one process a core: more threads would only cost the peer CPU seconds
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import measure
import numpy as np
import psutil
from distributed import Client, LocalCluster
from measure import Family, Row, Task
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GridSearchCV
from stores import make_store

from hepdask.config import Config
from hepdask.steps.tune import search
from hepdask.store import Store

UNIT = "settings/CPU h"
EPOCHS, BATCH, FOLDS = 2, 128, 4
CORES = os.cpu_count() or 1


class PlainKeras(ClassifierMixin, BaseEstimator):
    """A Keras model as anyone would give it to scikit-learn."""

    def __init__(self, hidden: tuple[int, ...] = (50, 20, 10), rate: float = 1e-3) -> None:
        self.hidden, self.rate = hidden, rate

    def fit(self, x: NDArray, y: NDArray) -> PlainKeras:
        """Train for `EPOCHS`."""
        import keras

        self.classes_ = np.unique(y)
        layers = [keras.layers.Dense(units, activation="relu") for units in self.hidden]
        scores = keras.layers.Dense(3, activation="softmax")
        self.model_ = keras.Sequential([keras.Input((x.shape[1],)), *layers, scores])
        self.model_.compile(keras.optimizers.Adam(self.rate), "sparse_categorical_crossentropy")
        self.model_.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
        return self

    def predict(self, x: NDArray) -> NDArray:
        """Give the class with the largest score."""
        return self.model_.predict(x, batch_size=4096, verbose=0).argmax(axis=1)


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    events, ours, runs = (10_000, 8, 1) if options.quick else (100_000, 16, 3)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_all(Path(folder), events, ours, runs))
    packages = (*measure.PACKAGES, "keras", "tensorflow-cpu", "scikit-learn", "optuna")
    about = measure.machine(packages, quick=options.quick, events=events, folds=FOLDS, epochs=EPOCHS)
    print(
        f"\n{about['cpu']}, {about['cores']} cores, load {about['load']}; {time.perf_counter() - start:.0f} s in all\n"
    )
    print(measure.table(rows))
    if options.json:
        measure.write(options.json, rows, about)


def _all(folder: Path, events: int, ours: int, runs: int) -> Iterator[Row]:
    store = make_store(folder / "store.zarr", np.ones(events, np.int64))
    with (
        LocalCluster(
            n_workers=CORES,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=40,
        ) as cluster,
        Client(cluster) as client,
    ):
        rounds = iter(range(1000))
        mine, theirs = _ours(folder, store, client, ours, rounds), _peer(store)
        mine()
        theirs()
        families = [Family(child.pid) for child in psutil.Process().children()]
        tasks = {
            "ours": Task(mine, ours, families=families),
            "peer": Task(theirs, CORES, families=families),
        }
        taken = measure.interleave(tasks, runs, warm_up=0)
    name = f"HLF search, {events:,} events, {FOLDS} folds, {EPOCHS} epochs"
    peer = "GridSearchCV over a Keras wrapper"
    yield Row.of_rates(name, UNIT, 3600 / taken["ours"], 3600 / taken["peer"], peer, runs)


def _ours(folder: Path, store: Store, client: Client, count: int, rounds: Iterator[int]) -> Any:
    """Give a search that begins anew each time."""
    rates = np.geomspace(3e-4, 3e-3, count).tolist()

    def call() -> None:
        document = {
            "output": str(folder / f"run-{next(rounds)}"),
            "models": {"hlf": {"epochs": EPOCHS, "batch_size": BATCH}},
            "tuning": {
                "parameters": {"learning_rate": rates},
                "sampler": "grid",
                "folds": FOLDS,
                "metric": "accuracy",
            },
        }
        found = search(Config.model_validate(document), store, client)
        assert len(found.trials) == count

    return call


def _peer(store: Store) -> Any:
    """Give a search of as many settings as there are cores."""
    events = store.events("train", particles=False)
    x, y = store.high_level_scaler(events.high_level), events.label.astype(np.int32)
    grid = {"rate": np.geomspace(3e-4, 3e-3, CORES).tolist()}
    return lambda: GridSearchCV(
        PlainKeras(), grid, cv=FOLDS, n_jobs=CORES, refit=False, error_score="raise"
    ).fit(x, y)


if __name__ == "__main__":
    main()
