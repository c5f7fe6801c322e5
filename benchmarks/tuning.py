"""How many settings an hour a search tries: against scikit-learn's GridSearchCV over a plain Keras wrapper.

Both sides search learning rates of one dense network on the same events, with as many folds and epochs and the same
batch size, one process a core. Ours is `hepdask.tune` on a local cluster, from its call to its result, journal and all;
the peer is `GridSearchCV(n_jobs=cores)`, whose processes stay between rounds. Both are warmed up by one round that does
not count: then processes are up, and TensorFlow is loaded; and the best accuracies must be alike. A setting costs the
peer far more, so it tries fewer between the same ends, one for each core: the names of the rows say how many. Rates are
settings over time, nothing more; no larger search is deduced from them.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

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
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from stores import make_store

from hepdask.config import Config
from hepdask.pipeline.tune import search
from hepdask.store import Store

EPOCHS, BATCH, FOLDS = 4, 128, 4
CORES = len(os.sched_getaffinity(0))
RATES = (1e-3, 1e-2)

#: Most that the best accuracies may differ: other folds, other initial weights.
ALIKE = 0.03

Accuracies = dict[float, float]


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
    events, ours, runs = (10_000, 8, 1) if options.quick else (100_000, 48, 3)
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
        theirs = max(2, CORES)
        search_ours, search_theirs = _ours(folder, store, client, ours), _peer(store, theirs)
        _require_alike(search_ours(), search_theirs())
        families = [Family(child.pid) for child in psutil.Process().children()]
        name = f"search of HLF, {ours} settings (peer {theirs}), {events:,} events, {FOLDS} folds, {EPOCHS} epochs"
        peer = f"GridSearchCV over a Keras wrapper, {CORES} processes"
        names: dict[Literal["cpu", "wall"], tuple[str, str]] = {
            "cpu": (name, "settings/CPU h"), "wall": (f"{name} (wall)", "settings/h"),
        }  # fmt: skip
        for clock, (row, unit) in names.items():
            watched = families if clock == "cpu" else []
            tasks = {
                "ours": Task(search_ours, ours, clock, watched),
                "peer": Task(search_theirs, theirs, clock, watched),
            }
            taken = measure.interleave(tasks, runs, warm_up=0)
            yield Row.of_rates(row, unit, 3600 / taken["ours"], 3600 / taken["peer"], peer, runs)


def _require_alike(ours: Accuracies, theirs: Accuracies) -> None:
    """Refuse to time two searches that do not find the same."""
    mine, others = max(ours.values()), max(theirs.values())
    if abs(mine - others) > ALIKE:
        raise SystemExit(f"the best accuracy is {mine:.4f} here and {others:.4f} there")


def _ours(folder: Path, store: Store, client: Client, count: int) -> Callable[[], Accuracies]:
    """Give a search that begins anew each time."""
    rates = np.geomspace(*RATES, count).tolist()
    rounds = itertools.count()

    def call() -> Accuracies:
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
        complete = [trial for trial in found.trials if trial.state == "complete" and trial.value is not None]
        if len(complete) != count:
            raise SystemExit(f"{len(complete)} of {count} settings are complete")
        return {trial.parameters["learning_rate"]: trial.value or 0.0 for trial in complete}

    return call


def _peer(store: Store, count: int) -> Callable[[], Accuracies]:
    """Give a search of fewer settings."""
    events = store.events("train", particles=False)
    x, y = store.high_level_scaler(events.high_level), events.label.astype(np.int32)
    grid = {"rate": np.geomspace(*RATES, count).tolist()}
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=1)

    def call() -> Accuracies:
        search = GridSearchCV(
            PlainKeras(), grid, cv=folds, n_jobs=CORES, refit=False, error_score="raise"
        ).fit(x, y)
        means = search.cv_results_["mean_test_score"]
        return dict(
            zip((one["rate"] for one in search.cv_results_["params"]), map(float, means), strict=True)
        )

    return call


if __name__ == "__main__":
    main()
