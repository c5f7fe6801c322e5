"""XGBoost: boosted trees and its random forests, over the workers of a Dask cluster or in this process."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
from distributed import Client

from hepdask import distributed, logs
from hepdask.config import Forest, XGBoost
from hepdask.distributed import RankOptions, rank_addresses
from hepdask.distributed.options import DEFAULTS
from hepdask.errors import HepdaskError, TrainingError
from hepdask.models.trees import devices
from hepdask.models.trees.fitted import Fitted, xgboost
from hepdask.models.trees.rows import Rows

logger = logging.getLogger(__name__)

_LOSS, _ERROR = "mlogloss", "merror"
_TELL = 2.0  # seconds between two lines about the rounds
_NEVER = 10**6  # seconds


def parameters(
    settings: XGBoost | Forest, classes: int, features: int, seed: int
) -> tuple[dict[str, Any], int]:
    """Give the parameters as XGBoost calls them, and the number of rounds."""
    common: dict[str, Any] = {
        "objective": "multi:softprob", "num_class": classes, "tree_method": "hist", "seed": seed,
        "eval_metric": [_ERROR, _LOSS], "max_depth": settings.max_depth, "verbosity": 0, "device": settings.device,
    }  # fmt: skip
    if isinstance(settings, Forest):
        share = settings.feature_share or math.sqrt(features) / features
        return common | {
            "num_parallel_tree": settings.trees, "learning_rate": 1.0, "subsample": 0.632, "colsample_bynode": share,
            "min_child_weight": settings.min_leaf, "lambda": 1e-6,
        }, 1  # fmt: skip
    return common | {
        "learning_rate": settings.learning_rate, "min_child_weight": settings.min_child_weight,
        "subsample": settings.subsample, "colsample_bytree": settings.feature_share, "lambda": settings.l2,
        "max_bin": settings.max_bin,
    }, settings.rounds  # fmt: skip


def boost(
    fit: Rows, validation: Rows, classes: int, settings: XGBoost | Forest, seed: int, threads: int = 1
) -> Fitted:
    """Train on events that are in memory.

    Parameters
    ----------
    fit, validation : Rows
        What is learned from, and what is watched; the latter may be empty.
    classes : int
        Columns of the scores.
    settings : XGBoost or Forest
        Section of the configuration.
    seed : int
        Of subsampling.
    threads : int
        How many may be used.
    """
    xgb = xgboost()
    if settings.device != "cpu":
        devices.require_xgboost({"": devices.of_xgboost(settings.device)}, settings)
    begin = time.process_time()
    params, rounds = parameters(settings, classes, fit.features.shape[1], seed)
    bins = params.get("max_bin", 256)
    watched = {"fit": xgb.QuantileDMatrix(fit.features, fit.label, weight=fit.weight, max_bin=bins)}
    if len(validation.label):
        watched["validation"] = xgb.QuantileDMatrix(
            validation.features, validation.label, max_bin=bins, ref=watched["fit"]
        )
    curves: dict[str, Any] = {}
    with _said():
        booster = xgb.train(
            params | {"nthread": threads}, watched["fit"], rounds,
            evals=[(data, name) for name, data in watched.items()], evals_result=curves, verbose_eval=False,
            early_stopping_rounds=_patience(settings, len(validation.label)),
        )  # fmt: skip
    return _fitted(booster, curves, fit.features.shape[1], "XGBoost", time.process_time() - begin)


def boost_over(
    client: Client,
    load: Callable[[str, Sequence[int]], Rows],
    runs: Mapping[str, Sequence[Sequence[int]]],
    classes: int,
    settings: XGBoost | Forest,
    seed: int,
    options: RankOptions = DEFAULTS,
) -> Fitted:
    """Train over the workers of a cluster, a rank on each, which loads its own events.

    Ranks are processes of their own (`hepdask.distributed.run`): XGBoost ends the process of a rank that lost another,
    and the process of its tracker, and neither may be a Dask worker or the scheduler.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    load : callable
        From the name of a sample and some parts of it to rows; runs on a rank.
    runs : mapping of sequence of parts
        For ``"fit"`` and ``"validation"``, the parts that each rank takes. There are as many ranks as runs to fit.
    classes : int
        Columns of the scores.
    settings : XGBoost or Forest
        Section of the configuration.
    seed : int
        Of subsampling. The same seed, events and number of ranks give the same trees.
    options : RankOptions
        Of `hepdask.distributed.run`. Cores are those of the smallest worker and GPUs one where there are any, whatever
        the options say; an error of hepdask is always final.

    Raises
    ------
    TrainingError
        There is nothing to watch for early stopping, or something is missing for a GPU that is asked for.
    hepdask.distributed.RankFailed
        A rank died, lost its worker, or raised an error, which is the cause: XGBoost refused a parameter.
    hepdask.distributed.NotEnoughSlots
        Workers were busy for too long.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if settings.device != "cpu":
        found = client.run(devices.of_xgboost, settings.device, workers=list(workers))
        devices.require_xgboost(found, settings)
    ranks = len(runs["fit"])
    threads = min(worker["nthreads"] for worker in workers.values())
    results = distributed.run(
        _boost_rank, load, runs, classes, settings, seed, threads, _patience(settings, len(runs["validation"])),
        client=client, ranks=ranks,
        options=replace(
            options, cores_per_rank=threads, gpus_per_rank=None, backend="tf.distribute", give_up_on=HepdaskError,
        ),
    )  # fmt: skip
    engine_name = f"XGBoost on {ranks} Dask worker{'s' * (ranks > 1)}"
    return replace(results[0], engine_name=engine_name, cpu_s=sum(one.cpu_s for one in results))


def _boost_rank(
    load: Callable[[str, Sequence[int]], Rows],
    runs: Mapping[str, Sequence[Sequence[int]]],
    classes: int,
    settings: XGBoost | Forest,
    seed: int,
    threads: int,
    patience: int | None,
) -> Fitted:
    """Load this rank's events, and train with all other ranks; all return the same trees."""
    logs.show_in_rank()
    xgb = xgboost()
    begin = time.process_time()
    rank = rank_addresses.rank()
    fit = load("fit", runs["fit"][rank])
    features = fit.features.shape[1]
    validation = load("validation", runs["validation"][rank]) if rank < len(runs["validation"]) else None
    params, rounds = parameters(settings, classes, features, seed)
    bins = params.get("max_bin", 256)
    curves: dict[str, Any] = {}
    with xgb.config_context(verbosity=0), _collective(), _said():
        watched = {"fit": xgb.QuantileDMatrix(fit.features, fit.label, weight=fit.weight, max_bin=bins)}
        if runs["validation"]:  # all ranks watch, those without such events, too
            held = validation or Rows(
                np.empty((0, features), np.float32), np.empty(0, int), np.empty(0, np.float32)
            )
            watched["validation"] = xgb.QuantileDMatrix(
                held.features, held.label, max_bin=bins, ref=watched["fit"]
            )
        booster = xgb.train(
            params | {"nthread": threads}, watched["fit"], rounds,
            evals=[(data, name) for name, data in watched.items()], evals_result=curves, verbose_eval=False,
            early_stopping_rounds=patience, callbacks=[_sign_of_life(xgb, rounds)],
        )  # fmt: skip
    return _fitted(booster, curves, features, "XGBoost", time.process_time() - begin)


@contextmanager
def _collective() -> Iterator[None]:
    """Connect this rank's XGBoost with that of all others; the tracker that brings them together is beside rank 0."""
    from xgboost.collective import CommunicatorContext
    from xgboost.tracker import RabitTracker

    if rank_addresses.size() == 1:
        yield
        return
    host, _, port = rank_addresses.addresses()[0].rpartition(":")
    if rank_addresses.rank() == 0:
        tracker = RabitTracker(rank_addresses.size(), host, int(port), sortby="task")
        tracker.start()
        Thread(target=tracker.wait_for, name="tracker", daemon=True).start()
    rank_addresses.barrier("tracker")
    with ExitStack() as stack:
        with redirect_stdout(io.StringIO()):  # each rank would say which one it is
            # no time limits here: a rank that is lost or hangs is noticed from outside
            communicator = CommunicatorContext(
                dmlc_tracker_uri=host, dmlc_tracker_port=int(port), dmlc_task_id=f"{rank_addresses.rank():06}",
                dmlc_timeout=_NEVER,
            )  # fmt: skip
            stack.enter_context(communicator)
        yield


def _sign_of_life(xgb: Any, rounds: int) -> Any:
    """Make a callback by which rank 0 tells every few seconds how far it is."""
    told = time.monotonic()

    class Tell(xgb.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            nonlocal told
            if rank_addresses.rank() == 0 and time.monotonic() > told + _TELL:
                told = time.monotonic()
                logger.info(f"round {epoch + 1} of {rounds}")
            return False

    return Tell()


def _patience(settings: XGBoost | Forest, watched: int) -> int | None:
    if isinstance(settings, Forest) or not settings.early_stopping:
        return None
    if not watched:
        raise TrainingError(
            "models.xgboost.early_stopping needs events to watch, and there are none; raise "
            "split.validation_fraction, or set it to null"
        )
    return settings.early_stopping


@contextmanager
def _said() -> Iterator[None]:
    """Raise XGBoost's errors in one line, without its stack of C++ functions; but those of a lost rank as they are."""
    from xgboost.core import XGBoostError

    try:
        yield
    except XGBoostError as error:
        if _is_of_lost_rank(error):
            raise
        words = str(error).split("Stack trace")[0].strip().splitlines()[-1]
        raise TrainingError(f"XGBoost: {words.rpartition(': ')[2]}") from error


def _is_of_lost_rank(error: Exception) -> bool:
    """Whether XGBoost lost another rank: it has one class of errors, and only the text tells where one came from."""
    return "src/collective/" in str(error)


def _fitted(booster: Any, curves: Mapping[str, Any], features: int, engine_name: str, cpu_s: float) -> Fitted:
    names = {"fit": "", "validation": "val_"}
    history = [
        {"epoch": float(at + 1)}
        | {
            f"{names[name]}{key}": change(curve[metric][at])
            for name, curve in curves.items()
            for metric, key, change in ((_LOSS, "loss", float), (_ERROR, "accuracy", lambda wrong: 1 - wrong))
        }
        for at in range(len(curves["fit"][_LOSS]))
    ]
    if booster.attr("best_iteration") is not None:  # the rounds after the best one are of no use
        booster = booster[: booster.best_iteration + 1]
    gains = np.zeros(features)
    for name, gain in booster.get_score(importance_type="total_gain").items():
        gains[int(name[1:])] = gain
    trees = booster.get_dump()
    nodes = sum(tree.count("\n") for tree in trees)
    share = gains / (gains.sum() or 1.0)
    return Fitted(bytes(booster.save_raw("ubj")), history, share, len(trees), nodes, engine_name, cpu_s)
