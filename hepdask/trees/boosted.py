"""XGBoost: boosted trees and its random forests, over the workers of a Dask cluster or in this process."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from distributed import Client, wait

from hepdask.config import Forest, XGBoost
from hepdask.errors import ClusterError, TrainingError
from hepdask.trees import devices
from hepdask.trees.fitted import Fitted, xgboost
from hepdask.trees.rows import Rows

_LOSS, _ERROR = "mlogloss", "merror"
_LOOK = 1.0  # seconds between two looks at whether all workers are there
_LOST = 5  # such looks, for XGBoost to say itself that one of them is lost
_T = TypeVar("_T")


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
    load: Callable[[str, Sequence[int] | None], Rows],
    runs: Mapping[str, Sequence[Sequence[int]]],
    sizes: Mapping[str, Sequence[int]],
    features: int,
    classes: int,
    settings: XGBoost | Forest,
    seed: int,
    timeout: float,
    port: int | None = None,
) -> Fitted:
    """Train over the workers of a cluster; each loads its own events.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    load : callable
        From the name of a sample and some parts of it to rows; runs on a worker.
    runs : mapping of sequence of parts
        For ``"fit"`` and ``"validation"``, the parts that each worker takes.
    sizes : mapping of sequence of int
        Events of each of these runs.
    features, classes : int
        Width of the rows, and columns of the scores.
    settings : XGBoost or Forest
        Section of the configuration.
    seed : int
        Of subsampling. The same seed, events and number of workers give the same trees.
    timeout : float
        Longest wait for other workers at any moment [s].
    port : int, optional
        Where workers find each other, on the scheduler's machine; default any.

    Raises
    ------
    ClusterError
        A worker was lost.
    """
    xgb = xgboost()
    import dask.array as da
    import xgboost.dask as xgb_dask
    from xgboost.collective import Config as Collective

    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    if settings.device != "cpu":
        found = client.run(devices.of_xgboost, settings.device, workers=workers)
        devices.require_xgboost(found, settings)
    before = client.run(time.process_time, workers=workers)

    def collection(sample: str, item: int, width: tuple[int, ...], dtype: Any, loaded: list[Any]) -> Any:
        pieces = []
        for worker, (_, future), size in zip(workers, loaded, sizes[sample], strict=False):
            part = client.submit(_item, future, item, pure=False, workers=[worker])
            pieces.append(da.from_delayed(part, (size, *width), dtype=dtype))
        return da.concatenate(pieces, axis=0)

    def matrix(sample: str, **more: Any) -> Any:
        # the i-th run always goes to the i-th worker, so that the trees do not depend on how tasks fell
        loaded = [
            (worker, client.submit(load, sample, list(parts), pure=False, workers=[worker]))
            for worker, parts in zip(workers, runs[sample], strict=False)
        ]
        wait([future for _, future in loaded])
        columns = [
            collection(sample, item, width, dtype, loaded)
            for item, width, dtype in ((0, (features,), np.float32), (1, (), np.int64), (2, (), np.float32))
        ]
        return xgb_dask.DaskQuantileDMatrix(
            client, columns[0], columns[1], weight=columns[2], max_bin=bins, **more
        )

    params, rounds = parameters(settings, classes, features, seed)
    bins = params.get("max_bin", 256)

    def grow() -> Any:
        watched = {"fit": matrix("fit")}
        if sum(sizes["validation"]):
            watched["validation"] = matrix("validation", ref=watched["fit"])
        with _said(), xgb.config_context(verbosity=0):
            return xgb_dask.train(
                client, params, watched["fit"], rounds,
                evals=[(data, name) for name, data in watched.items()], verbose_eval=False,
                early_stopping_rounds=_patience(settings, sum(sizes["validation"])),
                coll_cfg=Collective(timeout=int(timeout), tracker_timeout=int(timeout), tracker_port=port),
            )  # fmt: skip

    result = _while_all_are_there(client, set(workers), grow)
    after = client.run(time.process_time, workers=workers)
    used = len(runs["fit"])
    way = f"XGBoost on {used} Dask worker{'s' * (used > 1)}"
    cpu = sum(after[worker] - before[worker] for worker in workers)
    return _fitted(result["booster"], result["history"], features, way, cpu)


def _while_all_are_there(client: Client, workers: set[str], call: Callable[[], _T]) -> _T:
    """Give what a call gives that waits for tasks of certain workers, unless one of them is lost.

    A task that is bound to a lost worker is never run, so neither Dask's nor XGBoost's waits for it would end. The
    call runs in a thread, which is left alone then; it ends with the client.
    """
    found: futures.Future[_T] = futures.Future()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    def lost() -> set[str]:
        return workers - set(client.scheduler_info(n_workers=-1)["workers"])

    threading.Thread(target=run, name="xgboost", daemon=True).start()
    looks, gone = 0, set[str]()
    while looks < _LOST:
        ended = futures.wait([found], _LOOK).done
        gone = lost()
        if ended:
            try:
                return found.result()
            except (ValueError, RuntimeError, OSError) as error:
                if not gone:
                    raise
                raise ClusterError(
                    f"a worker was lost while XGBoost trained; train again ({error})"
                ) from error
        looks = looks + 1 if gone else 0
    raise ClusterError(
        f"a worker was lost while XGBoost read its events or trained: {', '.join(sorted(gone))}; train again"
    )


def _item(rows: Rows, item: int) -> Any:
    return (rows.features, rows.label, rows.weight)[item]


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
    """Give XGBoost's errors in one line, without its stack of C++ functions."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "XGBoostError":
            raise
        words = str(error).split("Stack trace")[0].strip().splitlines()[-1]
        raise TrainingError(f"XGBoost: {words.rpartition(': ')[2]}") from error


def _fitted(booster: Any, curves: Mapping[str, Any], features: int, way: str, cpu_s: float) -> Fitted:
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
    return Fitted(bytes(booster.save_raw("ubj")), history, share, len(trees), nodes, way, cpu_s)
