"""What makes a trained model and a study stale, and what does not."""

from __future__ import annotations

import pytest

from hepdask import prepare
from hepdask.config.training import Training
from hepdask.pipeline.training_key import events_key, study_key, training_key

#: Another value of each setting of training: those on which the weights depend, ...
DECISIVE = {
    "ranks": 2,
    "seed": 7,
    "memory_gib": 0.5,
    "window": 16,
    "class_weights": {"W": 2.0},
    "early_stopping": 3,
    "rate_per_rank": True,
    "precision": "mixed_float16",
}

#: ... and those on which only time and place depend.
OTHER = {
    "models": ("forest",),
    "cores_per_rank": 2,
    "kernel": False,
    "from_study": True,
    "start_timeout": 1.0,
    "gpus_per_rank": 1,
    "interface": "ib0",
    "port_range": (1000, 2000),
    "restarts": 7,
    "min_ranks": 2,
    "regroup_timeout": 1.0,
    "silence_timeout": 1.0,
}


def changed(config, section, **values):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


@pytest.fixture
def config(make_config):
    return make_config(tuning={"model": "hlf", "parameters": {"learning_rate": {"low": 0.001, "high": 0.1}}})


@pytest.fixture
def keys(config, client):
    """Return the keys of a network, of trees and of a study, by a configuration."""
    store = prepare(config, client).store

    def keys(config):
        network, trees = (training_key(store, config, name) for name in ("hlf", "forest"))
        return {
            "network": network,
            "trees": trees,
            "study": study_key(store, config),
            "events": events_key(store, config),
        }

    return keys


def test_settings_of_training(config, keys):
    before = keys(config)
    assert set(DECISIVE) | set(OTHER) == set(Training.model_fields), "each setting is in one of the two"
    for name, value in (DECISIVE | OTHER).items():
        assert getattr(config.training, name) != value, name
        after = keys(changed(config, "training", **{name: value}))
        expected = {"network", "study"} if name in DECISIVE else set()
        expected |= {"trees"} if name in ("seed", "class_weights") else set()
        assert {kind for kind in before if after[kind] != before[kind]} == expected, name


def test_other_sections(config, keys):
    def stale(other):
        after = keys(other)
        return {kind for kind in before if after[kind] != before[kind]}

    before = keys(config)
    assert stale(changed(config, "split", test_fraction=0.4)) == {"network", "trees", "study", "events"}
    models = changed(config, "models", hlf=config.models.hlf.model_copy(update={"hidden": (3,)}))
    assert stale(models) == {"network", "study"}
    searched = changed(config, "models", hlf=config.models.hlf.model_copy(update={"learning_rate": 0.5}))
    assert stale(searched) == {"network"}, "a study searches it, whatever the models say"
    assert stale(changed(config, "tuning", folds=7)) == {"study"}
    assert stale(changed(config, "tuning", trials=7)) == set(), "more settings extend a study"
