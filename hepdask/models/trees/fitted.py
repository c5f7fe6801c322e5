"""Trained trees in memory and in a file: two formats, both readable without hepdask."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.compiled import compiled
from hepdask.errors import MissingDependency


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes
    ----------
    file : bytes
        XGBoost's own UBJSON, or the arrays of a `Forest` as ``.npz``.
    history : list of dict
        One entry a round: epoch, loss, accuracy, val_loss, val_accuracy. Empty for forests.
    importances : float (n_features,)
        Share of each feature in what the splits gained; their sum is 1.
    trees, nodes : int
        How many.
    engine_name : str
        How they were grown, in words.
    cpu_s : float
        CPU time [s].
    """

    file: bytes
    history: list[dict[str, float]]
    importances: NDArray[np.float64]
    trees: int
    nodes: int
    engine_name: str
    cpu_s: float


class Trees(Protocol):
    """Trained trees."""

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give class probabilities (n, classes) of physical features (n, n_features)."""

    def check(self, features: int, classes: int) -> None:
        """Raise a ValueError where they cannot score events of so many features into so many classes."""


def load_trees(file: bytes) -> Trees:
    """Read what `Fitted.file` holds."""
    return Forest.from_bytes(file) if file.startswith(b"PK") else Boosted(file)


def xgboost() -> Any:
    """Import XGBoost, or say what is missing."""
    try:
        import xgboost
    except ImportError:
        raise MissingDependency("XGBoost is not installed: pip install 'hepdask[trees]'") from None
    return xgboost


class Boosted:
    """Trees of XGBoost.

    Parameters
    ----------
    file : bytes
        XGBoost's UBJSON.
    """

    def __init__(self, file: bytes) -> None:
        if not (file.startswith(b"{") and file.endswith(b"}")):  # XGBoost ends the process on other files
            raise ValueError("not trees as XGBoost saves them")
        self.booster = xgboost().Booster(model_file=bytearray(file))

    def check(self, features: int, classes: int) -> None:
        """Compare what it was trained on."""
        settings = json.loads(self.booster.save_config())["learner"]
        found = int(settings["learner_model_param"]["num_class"]), self.booster.num_features()
        if found != (classes, features) or settings["objective"]["name"] != "multi:softprob":
            raise ValueError(
                f"they score {found[1]} features into {found[0]} classes, not {features} into {classes}"
            )

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give class probabilities (n, classes)."""
        return self.booster.inplace_predict(features)


@dataclass(frozen=True)
class Forest:
    """A random forest as flat arrays; the nodes of one tree follow those of another.

    Attributes
    ----------
    root : int64 (n_trees,)
        First node of each tree.
    feature : int32 (n_nodes,)
        What a node looks at; -1 for a leaf.
    threshold : float64 (n_nodes,)
        Up to this value, an event goes left.
    left, right : int64 (n_nodes,)
        The next node.
    value : float32 (n_nodes, n_classes)
        Share of each class in a node.
    """

    root: NDArray[np.int64]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float32]

    @classmethod
    def from_bytes(cls, file: bytes) -> Forest:
        """Read an ``.npz`` file."""
        with np.load(io.BytesIO(file), allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    def to_bytes(self) -> bytes:
        """Write an ``.npz`` file."""
        file = io.BytesIO()
        np.savez_compressed(file, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return file.getvalue()

    def check(self, features: int, classes: int) -> None:
        """Look at every node: a way through a tree must end, and lead nowhere else."""
        nodes = np.arange(len(self.feature))
        inner = self.feature >= 0
        for name, kind in (
            ("root", "i"),
            ("feature", "i"),
            ("threshold", "f"),
            ("left", "i"),
            ("right", "i"),
        ):
            array = getattr(self, name)
            if array.dtype.kind != kind or array.ndim != 1:
                raise ValueError(f"{name} is {array.dtype}, in {array.ndim} dimensions")
            if name != "root" and len(array) != len(nodes):
                raise ValueError(f"{name} has {len(array)} nodes, feature {len(nodes)}")
        if self.value.shape != (len(nodes), classes) or self.value.dtype.kind != "f":
            raise ValueError(
                f"value has shape {self.value.shape}, there are {len(nodes)} nodes and {classes} classes"
            )
        if not np.isfinite(self.value).all():
            raise ValueError("a value is not a finite number")
        if not len(self.root) or self.root.min() < 0 or self.root.max() >= len(nodes):
            raise ValueError("a root is not one of its nodes")
        if len(nodes) and self.feature.max() >= features:
            raise ValueError(f"a node looks at feature {self.feature.max()} of {features}, counted from 0")
        for child in (self.left[inner], self.right[inner]):
            if (child <= nodes[inner]).any() or (child >= len(nodes)).any():
                raise ValueError("a node leads back, or out of the forest")

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the mean over the trees of the shares in the leaf an event falls into, (n, classes)."""
        arrays = (self.root, self.feature, self.threshold, self.left, self.right, self.value)
        return _scores(np.ascontiguousarray(features, np.float32), *arrays)


@compiled()
def _scores(
    rows: NDArray,
    root: NDArray,
    feature: NDArray,
    threshold: NDArray,
    left: NDArray,
    right: NDArray,
    value: NDArray,
) -> NDArray[np.float32]:
    total = np.zeros((len(rows), value.shape[1]))
    for tree in range(len(root)):
        for event in range(len(rows)):
            node = root[tree]
            while feature[node] >= 0:
                node = left[node] if rows[event, feature[node]] <= threshold[node] else right[node]
            for k in range(value.shape[1]):
                total[event, k] += value[node, k]
    return (total / len(root)).astype(np.float32)
