"""From ROOT files of collision events to trained event classifiers, on Dask clusters.

The names here are loaded when they are first used, so that ``import hepdask`` is quick.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from hepdask import user_environment
from hepdask._face import listing
from hepdask._version import __version__ as __version__

_HOMES = {
    "load_config": "hepdask.config",
    "DelphesSchema": "hepdask.input.schemas",
    "load_model": "hepdask.inference.classifier",
    "open_store": "hepdask.store",
    "new": "hepdask.pipeline.new_project",
    "simulate": "hepdask.pipeline.simulate",
    "prepare": "hepdask.pipeline.prepare",
    "train": "hepdask.pipeline.train",
    "tune": "hepdask.pipeline.tune",
    "predict": "hepdask.pipeline.predict",
    "evaluate": "hepdask.pipeline.evaluate",
    "run": "hepdask.pipeline.run",
    "session": "hepdask.notebook",
    "submit": "hepdask.pipeline.submit",
    "inspect": "hepdask.pipeline.inspect",
    "export": "hepdask.pipeline.export",
    "import_published": "hepdask.pipeline.import_published",
}

__all__ = [
    "DelphesSchema", "distributed", "evaluate", "export", "import_published", "inspect", "load_config", "load_model",
    "new", "open_store", "predict", "prepare", "run", "session", "simulate", "submit", "topology", "train", "tune",
]  # fmt: skip

_PACKAGES = {"distributed": "hepdask.distributed", "topology": "hepdask.analysis.topology"}

__dir__ = listing(__name__, __all__)

if TYPE_CHECKING:
    from hepdask import distributed
    from hepdask.analysis import topology
    from hepdask.config import load_config
    from hepdask.inference.classifier import load_model
    from hepdask.input.schemas import DelphesSchema
    from hepdask.notebook import session
    from hepdask.pipeline.evaluate import evaluate
    from hepdask.pipeline.export import export
    from hepdask.pipeline.import_published import import_published
    from hepdask.pipeline.inspect import inspect
    from hepdask.pipeline.new_project import new
    from hepdask.pipeline.predict import predict
    from hepdask.pipeline.prepare import prepare
    from hepdask.pipeline.run import run
    from hepdask.pipeline.simulate import simulate
    from hepdask.pipeline.submit import submit
    from hepdask.pipeline.train import train
    from hepdask.pipeline.tune import tune
    from hepdask.store import open_store


logging.getLogger(__name__).addHandler(logging.NullHandler())  # see hepdask.logs
user_environment.settle()  # before any library is loaded that would stumble over it


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(_PACKAGES[name])
    raise AttributeError(f"module 'hepdask' has no attribute {name!r}")
