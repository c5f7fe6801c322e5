"""Small folders of models as training writes them, without a cluster: a network, boosted trees, two forests."""

import json
from pathlib import Path

import keras
import numpy as np

from hepdask import models
from hepdask.config import Config, Forest, XGBoost
from hepdask.config.feature_names import HIGH_LEVEL
from hepdask.files import atomic
from hepdask.models.record import RECORD, ModelRecord, file_digest, write_model
from hepdask.models.trees import Rows, boosted, forest

KINDS = ("hlf", "xgboost", "forest", "forest of xgboost")
CLASSES = ("qcd", "ttbar", "wjets")
CHOSEN = [1, 0, 6]  # of the high-level features


def make(folder: Path, kind: str, **changes) -> Path:
    """Write a model of some kind that was trained on noise, with changes of its record."""
    name = kind.partition(" ")[0]
    file, content = _content(name, kind)
    analysis = Config().analysis.model_dump(mode="json")
    width = len(HIGH_LEVEL)
    document = {
        "key": "0", "model": name, "file": file, "file_digest": file_digest(content), "classes": CLASSES,
        "inputs": {"high_level": CHOSEN}, "settings": {}, "study": None, "analysis": analysis, "code": [],
        "imported": False, "mantissa_bits": 23,
        "scaling": {
            "high_level": {"shift": [1.0] * width, "factor": [0.02] * width},
            "particles": {"shift": [0.0] * 19, "factor": [1.0] * 19},
        },
        "history": [], "importances": {}, "facts": {},
    } | changes  # fmt: skip
    write_model(folder, ModelRecord.model_validate(document), content)
    return folder


def _content(name: str, kind: str) -> tuple[str, bytes]:
    rng = np.random.default_rng(4)
    if name == "hlf":
        config = Config.model_validate({"models": {"hlf": {"hidden": [4]}}})
        keras.utils.set_random_seed(4)
        network = models.build("hlf", config.models, {"high_level": CHOSEN}, len(CLASSES))
        return "model.keras", saved(network)
    features = rng.uniform(0, 100, (200, len(CHOSEN))).astype(np.float32)
    rows = Rows(features, (features[:, 0] // 34).astype(np.int64), np.ones(200, np.float32))
    none = Rows(features[:0], rows.label[:0], rows.weight[:0])
    if kind == "forest":
        return "model.npz", forest.grow(rows, len(CLASSES), Forest(trees=3, max_depth=3), 1, 1).file
    settings = (
        XGBoost(rounds=3, max_depth=2, early_stopping=None)
        if kind == "xgboost"
        else Forest(library="xgboost", trees=3, max_depth=2)
    )
    return "model.ubj", boosted.boost(rows, none, len(CLASSES), settings, 1).file


def saved(network) -> bytes:
    """Give what Keras writes of a network."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        network.save(Path(folder) / "network.keras")
        return (Path(folder) / "network.keras").read_bytes()


def resealed(folder: Path, change=lambda document: None, content: bytes | None = None) -> None:
    """Change a folder as somebody would who knows how digests are made."""
    document = json.loads((folder / RECORD).read_text())
    document.pop("digest")
    change(document)
    if content is not None:
        (folder / document["file"]).write_bytes(content)
        document["file_digest"] = file_digest(content)
    atomic.write_sealed(folder / RECORD, document)
