"""Networks on padded batches in float64, one event after the other."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from helpers import recurrent_oracle as oracle
from hepdask import models
from hepdask.analysis.scaling import Scaler
from hepdask.analysis.topology import expand_columns
from hepdask.batches.batch import Batch
from hepdask.batches.padding import padded
from hepdask.config import Models, feature_names
from hepdask.engines.engine import Particles
from hepdask.engines.keras_padded import KerasPadded
from hepdask.kernels.recurrent import Weights
from hepdask.store import Events

LENGTHS = [0, 1, 33, 801, 2, 0, 64]


CLASSES = 3


def batch_of(lengths, seed=0):
    """Events of random particles, as many as `lengths` says."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    particles = oracle.stored_particles(int(offsets[-1]), rng)
    zeros = np.zeros(len(lengths), np.int64)
    label = rng.integers(0, CLASSES, len(lengths))
    high_level = rng.normal(size=(len(lengths), len(feature_names.HIGH_LEVEL))).astype("f4")
    events = Events(offsets, particles, high_level, label, zeros, zeros)
    everyone = np.arange(len(lengths))
    weight = rng.uniform(0.1, 1.0, len(lengths)).astype("f4")
    return Batch(events, everyone, high_level, label, weight, len(lengths))


def arrays(batch):
    """What `in_float64` takes of a batch."""
    return (
        padded(batch, scaler(), list(range(len(feature_names.PARTICLE))), 801),
        batch.length,
        batch.label,
        batch.weight,
    )


def scaler():
    """Bring such particles to mean 0 and deviation 1."""
    rows = np.stack(
        list(expand_columns(oracle.stored_particles(5000, np.random.default_rng(1))).values()), axis=1
    )
    return Scaler(rows.mean(axis=0), 1 / rows.std(axis=0))


def engine_of(name, optimizer=None, on_device=False, **settings):
    chosen = Models.model_validate({name: {"dropout": 0.0, **settings}})
    inputs = models.inputs(name, chosen, feature_names.HIGH_LEVEL)
    model = models.build(name, chosen, inputs, CLASSES)
    rng = np.random.default_rng(2)
    model.set_weights([rng.normal(size=w.shape, scale=0.2) for w in model.get_weights()])
    if optimizer is not None:
        optimizer.build(model.trainable_variables)
    return model, KerasPadded(model, optimizer, Particles(scaler(), inputs["particles"], 801), on_device)


def in_float64(cell, weights, rows, lengths, labels, event_weights):
    """Scores, loss and its gradients, one event after the other."""
    *layer, dense, offset = (w.astype(np.float64) for w in weights)
    wrapped = Weights(*(np.asarray(w, np.float32) for w in layer))
    scores, total = [], 0.0
    gradients = [np.zeros_like(w) for w in (*layer, dense, offset)]
    for row, length, label, weight in zip(rows, lengths, labels, event_weights, strict=True):
        state, _ = getattr(oracle, cell)(wrapped, row[:length], np.zeros(len(dense)))
        shifted = np.exp(state @ dense + offset - (state @ dense + offset).max())
        score = shifted / shifted.sum()
        scores.append(score)
        total -= weight * np.log(score[label])
        of_logits = weight * (score - np.eye(CLASSES)[label])
        _, found = getattr(oracle, cell)(wrapped, row[:length], dense @ of_logits)
        for gradient, more in zip(gradients, [*found, np.outer(state, of_logits), of_logits], strict=True):
            gradient += more
    return np.array(scores), total, gradients


def check(cell, units, of_scores, of_gradients, on_device=False):
    """Compare scores, loss and gradients with those of float64; give the engine and its batch."""
    model, engine = engine_of("sequence", keras.optimizers.SGD(1.0), on_device, cell=cell, units=units)
    batch, before = batch_of(LENGTHS), model.get_weights()
    scores, loss, gradients = in_float64(cell, before, *arrays(batch))
    assert engine.scores(batch) == pytest.approx(scores, abs=of_scores)
    (result,) = engine.train(SimpleNamespace(shuffled=lambda seed, epoch: [batch]), 1, 0)
    assert result.loss == pytest.approx(loss * len(LENGTHS), rel=of_gradients)
    for old, new, gradient in zip(before, model.get_weights(), gradients, strict=True):
        assert np.abs(old - new - gradient).max() <= of_gradients * np.abs(gradient).max()
    return engine, batch
