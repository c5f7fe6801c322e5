"""Whether trees can be grown on a GPU here: what is missing is said before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping

import numpy as np

from hepdask.config import Forest, XGBoost
from hepdask.distributed.gpu_claims import NoDriver, host_devices, visible
from hepdask.errors import TrainingError
from hepdask.models.trees.fitted import xgboost


def of_xgboost(wanted: str) -> tuple[str, str]:
    """Say where XGBoost really computes here, since it falls back to the CPU with a mere warning, and on which GPU."""
    xgb = xgboost()
    data = xgb.DMatrix(np.zeros((2, 1), np.float32), np.zeros(2))
    booster = xgb.train({"device": wanted, "verbosity": 0}, data, 1)
    used = str(json.loads(booster.save_config())["learner"]["generic_param"]["device"])
    if not used.startswith(wanted):
        return used, ""
    try:
        return used, next(iter(visible(host_devices(), os.environ).values()), "")
    except NoDriver:  # XGBoost finds it without nvidia-smi
        return used, ""


def require_xgboost(found: Mapping[str, tuple[str, str]], settings: XGBoost | Forest) -> None:
    """Refuse workers that have no GPU, and two that have the same: XGBoost takes the first that each sees."""
    key = _key(settings)
    users: dict[str, str] = {}
    for worker, (used, identity) in found.items():
        if not used.startswith("cuda"):
            raise TrainingError(
                f"{key} is cuda, and XGBoost finds none{worker and ' on worker '}{worker}: it needs a GPU and the "
                "package xgboost in place of xgboost-cpu (pip install 'hepdask[gpu]'); or set it to cpu"
            )
        if other := users.get(identity):
            raise TrainingError(
                f"{key} is cuda, and workers {other} and {worker} would share {identity}: start one worker for each "
                "GPU (a batch job with one process, or --cluster gpu)"
            )
        if identity:
            users[identity] = worker


def missing_for_cuml() -> str:
    """Say what cuML lacks in this process; empty where it can grow forests."""
    try:
        found = visible(host_devices(), os.environ)
    except NoDriver as missing:
        return str(missing)
    if not found:
        return f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}"
    if importlib.util.find_spec("cuml") is None:
        return "the package cuml-cu12 is not installed (pip install 'hepdask[cuml]')"
    return ""


def require_cuml(found: Mapping[str, str]) -> str:
    """Give the first worker on which nothing is missing, of what `missing_for_cuml` says on each."""
    fit = [worker for worker, missing in found.items() if not missing]
    if fit:
        return fit[0]
    worker, missing = next(iter(found.items()))
    raise TrainingError(
        f"models.forest.device is cuda, and cuML cannot be used{worker and ' on worker '}{worker}: {missing}; or set "
        "it to cpu"
    )


def _key(settings: XGBoost | Forest) -> str:
    return f"models.{'forest' if isinstance(settings, Forest) else 'xgboost'}.device"
