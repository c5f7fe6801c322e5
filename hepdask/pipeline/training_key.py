"""What a trained model and a study depend on: they are stale when a digest of it changes."""

from __future__ import annotations

from hepdask import models
from hepdask._version import versions
from hepdask.config import Config
from hepdask.files import atomic
from hepdask.pipeline.prepare import identity
from hepdask.store import Store

#: Settings of training on which the weights depend.
_DECISIVE = {
    "ranks", "seed", "memory_gib", "window", "class_weights", "early_stopping", "rate_per_rank", "precision",
}  # fmt: skip

#: ... those of trees; settings of the model say the rest.
_DECISIVE_OF_TREES = {"seed", "class_weights"}

#: Raised whenever the same events and settings lead to another model than before, or checkpoints hold something else.
_TRAINING = 1

#: What trains, and what a checkpoint of it is made for.
_LIBRARIES = {
    "networks": ("keras", "tensorflow-cpu", "tensorflow"), "trees": ("xgboost-cpu", "xgboost", "scikit-learn"),
}  # fmt: skip


def events_key(store: Store, config: Config) -> str:
    """Digest of what is learned from: the events, what was selected and computed by which functions, and the split."""
    split = config.split.model_dump(mode="json")
    features = list(store.features["hlf"])
    return atomic.digest([store.fingerprint, features, store.classes, identity(config), split])


def training_key(store: Store, config: Config, name: str) -> str:
    """Digest of everything a trained model depends on."""
    is_tree = name in models.TREES
    return atomic.digest(
        [
            _TRAINING,
            versions(_LIBRARIES["trees" if is_tree else "networks"]),
            events_key(store, config),
            models.settings(name, config.models).model_dump(mode="json"),
            config.training.model_dump(mode="json", include=_DECISIVE_OF_TREES if is_tree else _DECISIVE),
        ]
    )


def study_key(store: Store, config: Config) -> str:
    """Digest of all that a fold's value depends on, and of what is searched; not of how, or how much."""
    tuning = config.tuning.model_dump(mode="json", include={"model", "parameters", "folds", "metric"})
    settings = models.settings(config.tuning.model, config.models).model_dump(
        mode="json", exclude=set(tuning["parameters"])
    )
    training = config.training.model_dump(mode="json", include=_DECISIVE)
    return atomic.digest([events_key(store, config), settings, training, tuning])[:16]
