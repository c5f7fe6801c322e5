"""`tune`: many settings of a model, each trained on all folds but one and measured on that, over a cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import csv
import io
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from distributed import Client

from hepdask import clusters, models
from hepdask.config import Config
from hepdask.distributed.future import RunFuture
from hepdask.distributed.launch import run_until
from hepdask.errors import ClusterError, ConfigError, TrainingError
from hepdask.extras import require
from hepdask.files import atomic
from hepdask.kernels.build import KernelMissing, library
from hepdask.pipeline.owned_output import owns_output
from hepdask.pipeline.prepare import open_prepared
from hepdask.pipeline.rank_options import rank_options
from hepdask.pipeline.required_extras import require_for_models
from hepdask.pipeline.training_key import events_key, study_key
from hepdask.progress import track
from hepdask.store import Store
from hepdask.training.loop import TrainedModel, environment, train_rank
from hepdask.tuning import search_space
from hepdask.tuning.page import write_page
from hepdask.tuning.study import Study, Trial, open_study
from hepdask.tuning.trial import Tried, reason_of, try_folds

logger = logging.getLogger(__name__)

_POLL = 2.0

#: Longest time that ranks take to end [s].
_ENDING = 20.0

#: Settings in the table of the best.
_SHOWN = 5


@dataclass(frozen=True)
class Tuned:
    """A search on disk.

    Attributes
    ----------
    folder : Path
        Holds ``study.journal``, ``trials.csv``, ``best.json`` and ``study.html`` with its figures as PDF.
    best : Trial
        The setting with the best mean over the folds.
    trials : list of Trial
        All of them.
    """

    folder: Path
    best: Trial
    trials: list[Trial]


@owns_output("tuning")
def tune(config: Config, client: Client | None = None) -> Tuned:
    """Search for the best settings of one model by cross-validation.

    Parameters
    ----------
    config : Config
        Uses `tuning`, `models`, `training`, `store` and `cluster`.
    client : distributed.Client, optional
        Where settings are tried; by default on `config.cluster`.

    Returns
    -------
    Tuned

    Raises
    ------
    ConfigError
        There is nothing to try, or something that cannot be.
    MissingDependency
        Optuna or the library of the model is not installed.
    StoreError
        There is no complete store.
    TrainingError
        No setting was finished; the message is the reason of the last that failed.
    ClusterError
        No worker was there for `tuning.worker_timeout`.

    Notes
    -----
    A setting that fails is recorded with its reason, and the search goes on. Stopped or killed, it goes on where it
    was when it is started again; with more `tuning.trials`, it is extended.
    """
    search_space.check(config)
    require("tune", "hepdask tune")
    if config.tuning.model != "hlf":  # which the compiled kernel trains where it can be built
        require_for_models(config, [config.tuning.model])
    return search(config, open_prepared(config), client)


@owns_output("tuning")
def search(config: Config, store: Store, client: Client | None = None) -> Tuned:
    """Search on a store that is at hand; as `tune`."""
    tuning, name = config.tuning, config.tuning.model
    models.inputs(name, config.models, store.features["hlf"])
    folder = config.folder / "tuning" / name
    key = study_key(store, config)
    with open_study(folder / "study.journal", f"{name}-{key}", tuning, config.training.seed) as study:
        if len(done := study.trials()) >= study.total and all(trial.state != "running" for trial in done):
            logger.info(f"{folder}: up to date")
        else:
            with clusters.connect(config.cluster, client) as client, _runner(config, store, client) as runner:
                _keep_busy(study, config, runner)
        return _written(study, folder, key, events_key(store, config), config)


def tuned(config: Config, store: Store, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give the best settings found for each of these models that was tuned on these events.

    Raises
    ------
    ConfigError
        None of them was, or one on other events.
    HepdaskError
        What a study wrote is damaged.
    """
    found = {}
    for name in names:
        file = config.folder / "tuning" / name / "best.json"
        best = atomic.read_sealed(file)
        if best is None:
            continue
        if best.get("events") != events_key(store, config):
            raise ConfigError(
                f"{file}: found on other events than are in {store.path} now (files, selection, features or split have "
                "changed); run: hepdask tune CONFIG"
            )
        found[name] = best["parameters"]
    if not found:
        raise ConfigError(
            f"{config.folder / 'tuning'}: no study of {' or '.join(names)} is complete; run: hepdask tune CONFIG"
        )
    return found


class _Future(Protocol):
    def add_done_callback(self, function: Callable[[Any], Any]) -> Any: ...
    def result(self) -> Any: ...
    def cancel(self) -> Any: ...


class _Runner(Protocol):
    """Tries settings on a cluster."""

    def room(self) -> int:
        """Give how many may be under way."""

    def submit(self, config: Config, folds: list[int]) -> _Future:
        """Begin to try a setting on some folds; the future is of a `Tried`."""


class _InTasks:
    """Small models: a setting is a task, and takes one core."""

    def __init__(self, store: Store, client: Client) -> None:
        self._store, self._client = store, client

    def room(self) -> int:
        threads = sum(self._client.nthreads().values())
        return threads and threads + 1

    def submit(self, config: Config, folds: list[int]) -> _Future:
        name, store = config.tuning.model, self._store
        columns = models.inputs(name, config.models, store.features["hlf"])["high_level"]
        return self._client.submit(
            try_folds, config, name, store.path.absolute(), store.fingerprint, columns, folds,
            pure=False, key=f"try-{name}-{time.monotonic_ns()}",
        )  # fmt: skip


class _InRanks:
    """Networks on particles: a setting is a run of ranks for each fold, as `train` starts them."""

    def __init__(self, config: Config, store: Store, client: Client) -> None:
        self._training, self._store, self._client = config.training, store, client
        self._under_way: set[RunFuture[Tried]] = set()

    def room(self) -> int:
        slots = sum(threads // self._training.cores_per_rank for threads in self._client.nthreads().values())
        return slots and max(1, slots // self._training.ranks)

    def submit(self, config: Config, folds: list[int]) -> _Future:
        stop = threading.Event()
        future = RunFuture(lambda: self._try(config, folds, stop), stop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def end(self) -> None:
        """End the ranks of all settings that are under way."""
        left = list(self._under_way)
        for future in left:
            future.cancel()
        concurrent.futures.wait(left, _ENDING)

    def _try(self, config: Config, folds: list[int], stop: threading.Event) -> Tried:
        values, cpu, training = [], 0.0, self._training
        env = environment(config.tuning.model, config)
        options = replace(rank_options(training), env=env, on_output=lambda rank, line: None)
        for fold in folds:
            arguments = (config.tuning.model, config, self._store.path.absolute())
            results: list[TrainedModel | None] = run_until(
                stop, train_rank, arguments, {"fold": (fold, config.tuning.folds)},
                self._client, training.ranks, options,
            )  # fmt: skip
            trained = results[0]
            assert trained is not None, "rank 0 always returns the model"
            rows = trained.history
            row = min(rows, key=lambda row: row["val_loss"]) if training.early_stopping else rows[-1]
            values.append(row[f"val_{config.tuning.metric}"])
            cpu += trained.cpu_s
        return Tried(values, cpu)


@contextmanager
def _runner(config: Config, store: Store, client: Client) -> Iterator[_Runner]:
    name = config.tuning.model
    missing = None
    if name == "hlf":
        try:
            library("dense")
        except KernelMissing as error:
            missing = error
    if name in models.TREES or (name == "hlf" and missing is None):
        yield _InTasks(store, client)
        return
    require_for_models(config, [name])
    if missing is not None:
        logger.warning(f"every fold runs in its own process, many times slower: {missing}")
    ranks = _InRanks(config, store, client)
    try:
        yield ranks
    finally:
        ranks.end()


@dataclass
class _UnderWay:
    number: int
    parameters: dict[str, Any]
    before: Tried
    deadline: float


def _keep_busy(study: Study, config: Config, runner: _Runner) -> None:
    """Keep the cluster busy until all settings are tried."""
    tuning = config.tuning
    under_way: dict[_Future, _UnderWay] = {}
    done: queue.SimpleQueue[_Future] = queue.SimpleQueue()
    last_seen = time.monotonic()
    best: Trial | None = None

    def start(number: int, parameters: dict[str, Any], before: Tried, folds: range) -> None:
        future = runner.submit(search_space.applied(config, tuning.model, parameters), list(folds))
        deadline = time.monotonic() + tuning.trial_timeout
        under_way[future] = _UnderWay(number, parameters, before, deadline)
        future.add_done_callback(done.put)

    def take(future: _Future, trying: _UnderWay) -> None:
        """Record what came of a setting, or let it go on."""
        number, before = trying.number, trying.before
        try:
            new = future.result()
        except ClusterError:
            raise
        except BaseException as error:  # whatever it is: the others go on
            if isinstance(error, KeyboardInterrupt):
                raise
            if isinstance(error, concurrent.futures.CancelledError | asyncio.CancelledError):
                raise ClusterError("tune: a task was cancelled; was the cluster shut down?") from error
            new = Tried([], 0.0, reason_of(error))
        if new.reason:
            study.fail(number, new.reason, before.cpu_s + new.cpu_s)
            logger.info(f"setting {number} failed: {new.reason}; {_shown(trying.parameters)}")
            return
        tried = Tried([*before.values, *new.values], before.cpu_s + new.cpu_s)
        whole = len(tried.values) == tuning.folds
        if whole or not np.isfinite(tried.values).all():
            study.finish(number, tried.values, tried.cpu_s)
        elif study.promising(number, tried.values):
            start(number, trying.parameters, tried, range(len(tried.values), tuning.folds))
        else:
            study.finish(number, tried.values, tried.cpu_s, pruned=True)

    first = range(tuning.prune_after or tuning.folds)
    nothing = Tried([], 0.0)
    with track(f"tune {tuning.model}", study.total, "settings") as tracker:
        tracker.advance(len(study.trials()))
        try:
            while True:
                room = runner.room()
                if room:
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > tuning.worker_timeout:
                    raise ClusterError(
                        f"tune: no worker for {tuning.worker_timeout:.0f} s; check the cluster's jobs, or raise "
                        "tuning.worker_timeout"
                    )
                while len(under_way) < room and (asked := study.ask()):
                    start(*asked, nothing, first)
                if not under_way and room:
                    return
                _give_up_on_late(study, under_way, tuning.trial_timeout)
                try:
                    future = done.get(timeout=_POLL)
                except queue.Empty:
                    continue
                if (trying := under_way.pop(future, None)) is None:
                    continue
                waiting = len(under_way)
                take(future, trying)
                tracker.advance(len(under_way) == waiting)
                ranked = study.ranked()
                tracker.below(_table(ranked, tuning.metric))
                if ranked and (best is None or ranked[0].number != best.number):
                    best = ranked[0]
                    about = f"setting {best.number}: {_shown(best.parameters)}"
                    logger.info(f"best so far: {tuning.metric} {_measured(best)}, {about}")
        finally:
            for future in under_way:
                future.cancel()


def _give_up_on_late(study: Study, under_way: dict[_Future, _UnderWay], timeout: float) -> None:
    for future, trying in list(under_way.items()):
        if time.monotonic() > trying.deadline:
            future.cancel()
            del under_way[future]
            study.fail(trying.number, f"took longer than tuning.trial_timeout ({timeout:g} s)")
            logger.info(f"setting {trying.number} took longer than tuning.trial_timeout")


def _shown(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in parameters.items()
    )


def _measured(trial: Trial) -> str:
    return f"{trial.value:.5f}" + (f" ± {trial.error:.5f}" if trial.error is not None else "")


def _table(ranked: list[Trial], metric: str) -> list[str]:
    return [
        f"{place}. {metric} {_measured(trial)}  setting {trial.number}: {_shown(trial.parameters)}"
        for place, trial in enumerate(ranked[:_SHOWN], 1)
    ]


def _written(study: Study, folder: Path, key: str, events: str, config: Config) -> Tuned:
    """Write the table of all settings, the best of them, and the page."""
    trials, ranked, metric = study.trials(), study.ranked(), config.tuning.metric
    failed = [trial for trial in trials if trial.state == "failed"]
    if not ranked:
        raise TrainingError(f"{folder}: no setting was completed; the last: {failed[-1].reason}")
    best = ranked[0]
    table = io.StringIO()
    writer = csv.writer(table)
    parameters = list(best.parameters)
    writer.writerow(["number", "state", metric, "error", "cpu_s", *parameters, "folds", "reason"])
    for trial in trials:
        writer.writerow(
            [
                trial.number, trial.state, trial.value, trial.error, trial.cpu_s,
                *[trial.parameters.get(name) for name in parameters],
                " ".join(f"{value:.6g}" for value in trial.folds), trial.reason,
            ]
        )  # fmt: skip
    atomic.write_bytes(folder / "trials.csv", table.getvalue().encode())
    atomic.write_sealed(
        folder / "best.json",
        {"key": key, "events": events, "parameters": best.parameters, "metric": metric, "value": best.value,
         "error": best.error, "folds": best.folds, "number": best.number},
    )  # fmt: skip
    title = f"{config.folder.name}: settings of {config.tuning.model}"
    write_page(folder, title, metric, config.tuning.parameters, trials, ranked, study.importances())
    pruned = sum(trial.state == "pruned" for trial in trials)
    logger.info(
        f"{len(trials)} settings: {len(ranked)} complete, {pruned} stopped early, {len(failed)} failed"
    )
    for line in _table(ranked, metric):
        logger.info(line)
    logger.info(f"the best: {folder / 'best.json'}; train with it: hepdask train CONFIG --from-study")
    return Tuned(folder, best, trials)
