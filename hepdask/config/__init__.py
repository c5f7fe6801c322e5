"""The configuration: one YAML document, one file a section; `run` holds the whole and reads it."""

from hepdask._face import listing
from hepdask.config.base import Section
from hepdask.config.input import DEFAULT_TREE, Dataset, File, Input, XRootD
from hepdask.config.models import (
    HLF,
    Forest,
    Inclusive,
    ModelName,
    Models,
    Optimised,
    OptimizerName,
    Sequence,
    XGBoost,
)
from hepdask.config.run import Config, load_config
from hepdask.config.simulation import Sample
from hepdask.config.split import Split
from hepdask.config.store import Store
from hepdask.config.topology import Collections, Topology
from hepdask.config.training import Training
from hepdask.config.tuning import Range, Tuning

__all__ = [
    "DEFAULT_TREE", "HLF", "Collections", "Config", "Dataset", "File", "Forest", "Inclusive", "Input", "ModelName",
    "Models", "Optimised", "OptimizerName", "Range", "Sample", "Section", "Sequence", "Split", "Store", "Topology",
    "Training", "Tuning", "XGBoost", "XRootD", "load_config",
]  # fmt: skip

__dir__ = listing(__name__, __all__)
