"""From ROOT files of collision events to trained event classifiers, on Dask clusters.

The names here are loaded when they are first used, so that ``import hepdask`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hepdask import user

__version__ = "0.1.0"

_HOMES = {
    "load_config": "hepdask.config",
    "DelphesSchema": "hepdask.schema",
    "load_model": "hepdask.classifier",
    "open_store": "hepdask.store",
    "new": "hepdask.steps.new",
    "simulate": "hepdask.steps.simulate",
    "prepare": "hepdask.steps.prepare",
    "train": "hepdask.steps.train",
    "tune": "hepdask.steps.tune",
    "predict": "hepdask.steps.predict",
    "evaluate": "hepdask.steps.evaluate",
    "run": "hepdask.steps.run",
    "session": "hepdask.interactive",
    "submit": "hepdask.steps.submit",
    "inspect": "hepdask.steps.inspect",
    "export": "hepdask.steps.export",
    "import_published": "hepdask.steps.importing",
}

__all__ = [
    "DelphesSchema",
    "evaluate", "export", "import_published", "inspect", "load_config", "load_model", "new", "open_store", "predict",
    "prepare", "run", "session", "simulate", "submit", "train", "tune",
]  # fmt: skip

if TYPE_CHECKING:
    from hepdask.classifier import load_model
    from hepdask.config import load_config
    from hepdask.interactive import session
    from hepdask.schema import DelphesSchema
    from hepdask.steps.evaluate import evaluate
    from hepdask.steps.export import export
    from hepdask.steps.importing import import_published
    from hepdask.steps.inspect import inspect
    from hepdask.steps.new import new
    from hepdask.steps.predict import predict
    from hepdask.steps.prepare import prepare
    from hepdask.steps.run import run
    from hepdask.steps.simulate import simulate
    from hepdask.steps.submit import submit
    from hepdask.steps.train import train
    from hepdask.steps.tune import tune
    from hepdask.store import open_store


user.settle()  # before any library is loaded that would stumble over it


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("distributed", "features"):
        return importlib.import_module(f"hepdask.{name}")
    raise AttributeError(f"module 'hepdask' has no attribute {name!r}")
