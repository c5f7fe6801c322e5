"""The classifiers: what they take, and how they are built. A network is a file in `networks/` and its settings.

Importing this package does not import TensorFlow; building a model does.
"""

from __future__ import annotations

import collections.abc
import difflib
import importlib
from typing import TYPE_CHECKING, Any

from hepdask._face import listing
from hepdask.config import Models
from hepdask.config.feature_names import PARTICLE
from hepdask.errors import ConfigError
from hepdask.models.kinds import NETWORKS, TREES, takes

if TYPE_CHECKING:
    import keras

__all__ = ["NETWORKS", "TREES", "build", "inputs", "settings"]

__dir__ = listing(__name__, __all__)


def settings(name: str, models: Models) -> Any:
    """Pick the settings of a model: an `HLF`, `Sequence`, `Inclusive`, `XGBoost` or `Forest`."""
    return getattr(models, name)


def inputs(name: str, models: Models, high_level: collections.abc.Sequence[str]) -> dict[str, list[int]]:
    """Say which features a model takes.

    Parameters
    ----------
    name : str
        One of `NETWORKS` or `TREES`.
    models : Models
        Settings of all models.
    high_level : sequence of str
        The high-level features of the store.

    Returns
    -------
    dict of list of int
        Name of the input, ``"high_level"`` or ``"particles"``, to the columns it takes, in their order.

    Raises
    ------
    ConfigError
        There is no such feature.
    """
    chosen = settings(name, models)
    found = {}
    if "high_level" in takes(name):
        found["high_level"] = _places(f"models.{name}.features", chosen.features, high_level)
    if "particles" in takes(name):
        wanted = chosen.particle_features
        found["particles"] = _places(f"models.{name}.particle_features", wanted, PARTICLE)
    return found


def _places(
    key: str, wanted: collections.abc.Sequence[str] | None, known: collections.abc.Sequence[str]
) -> list[int]:
    for feature in wanted or ():
        if feature not in known:
            near = difflib.get_close_matches(feature, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{key}: no feature is called {feature}; {hint}")
    return [list(known).index(feature) for feature in wanted or known]


def build(name: str, models: Models, inputs: dict[str, list[int]], classes: int) -> keras.Model:
    """Build an untrained network.

    Parameters
    ----------
    name : str
        One of `NETWORKS`; the module of that name in `networks` builds it.
    models : Models
        Settings of all models.
    inputs : dict of list of int
        From `inputs`.
    classes : int
        Length of the output.

    Returns
    -------
    keras.Model
        From a dict of arrays, by the names in `inputs`, to class probabilities (n, classes).
    """
    network = importlib.import_module(f"hepdask.models.networks.{name}")
    widths = {given: len(columns) for given, columns in inputs.items()}
    return network.build(settings(name, models), widths, classes)
