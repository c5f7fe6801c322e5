"""Networks on padded batches against arithmetic in float64, events without particles among them."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.padded_oracle import CLASSES, LENGTHS, batch_of, check, engine_of, scaler
from helpers.requirements import require

from hepdask import models
from hepdask.batches.batch import Batch
from hepdask.batches.padding import padded, padded_length
from hepdask.config import Models, feature_names
from hepdask.engines.choice import choose_engine
from hepdask.engines.device_batches import DeviceBatches
from hepdask.engines.engine import Particles
from hepdask.kernels import build


@pytest.mark.parametrize(("cell", "on_device"), [("gru", False), ("lstm", False), ("gru", True)])
def test_scores_loss_and_gradients_are_those_of_float64(cell, on_device):
    check(cell, 5, of_scores=2e-6, of_gradients=1e-5, on_device=on_device)


@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0, 6], [5]])
@pytest.mark.parametrize("chosen", [list(range(len(feature_names.PARTICLE))), [18, 3, 0, 14, 4]])
def test_batches_made_on_the_device_are_those_made_here(lengths, chosen):
    batch = batch_of(lengths)
    there = DeviceBatches(batch.source, scaler(), chosen)
    for events in (batch.events, batch.events[::-1], batch.events[:1]):
        some = replace(batch, events=events)
        rows = there.rows(events, padded_length(some, 801, 32)).numpy()
        here = padded(some, scaler(), chosen, 801, 32)
        assert rows.shape == here.shape
        np.testing.assert_allclose(rows, here, rtol=1e-5, atol=1e-5)
        assert ((rows != 0) == (here != 0)).all()


def test_events_without_any_particle_can_be_on_a_device():
    five = batch_of([5]).source
    none = replace(
        five, offsets=np.zeros(2, np.int64), particles={name: c[:0] for name, c in five.particles.items()}
    )
    rows = DeviceBatches(none, scaler(), [0, 18]).rows(np.array([0]), 32).numpy()
    assert rows.shape == (1, 32, 2)
    assert not rows.any()


def test_a_device_without_room_gets_batches_from_here(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hepdask")
    _, engine = engine_of("inclusive", units=6)
    expected = engine.scores(batch_of(LENGTHS))

    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    monkeypatch.setattr("hepdask.engines.keras_padded.DeviceBatches", full)
    _, engine = engine_of("inclusive", on_device=True, units=6)
    assert engine.scores(batch_of(LENGTHS)) == pytest.approx(expected, abs=1e-6)
    assert engine.scores(batch_of(LENGTHS)) == pytest.approx(expected, abs=1e-6)
    assert caplog.text.count("no room") == 1


def test_lengths_of_batches_are_few_and_padding_comes_last():
    batch = batch_of([3, 40, 0])
    chosen = list(range(len(feature_names.PARTICLE)))
    for multiple, longest in ((1, 40), (32, 64), (1000, 801)):
        rows = padded(batch, scaler(), chosen, 801, multiple)
        assert rows.shape == (3, longest, len(chosen))
        assert [int((row != 0).any(axis=1).sum()) for row in rows] == [3, 40, 0]
        assert all(not row[length:].any() for row, length in zip(rows, batch.length, strict=True))


@pytest.mark.parametrize("cell", ["gru", "lstm", "transformer"])
def test_events_do_not_depend_on_those_beside_them(cell):
    _, engine = engine_of("inclusive", cell=cell, units=6)
    together = engine.scores(batch_of(LENGTHS))
    assert np.isfinite(together).all(), "also of events without particles"
    assert together.sum(axis=1) == pytest.approx(1, abs=1e-5)
    few = batch_of(LENGTHS)
    alone = Batch(few.source, few.events[:3], few.high_level[:3], few.label[:3], few.weight[:3], 3)
    assert engine.scores(alone) == pytest.approx(together[:3], abs=1e-5)


def test_a_gpu_that_is_of_no_use_is_told_of(monkeypatch):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees a GPU")
    require(build.compiler(), "there is no C++ compiler")
    inputs = {"particles": list(range(len(feature_names.PARTICLE)))}
    model = models.build("sequence", Models(), inputs, CLASSES)
    particles = Particles(scaler(), inputs["particles"], 801)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_engine(model, None, particles, True, 1)[1] == "the compiled recurrent kernel"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "on the CPU: TensorFlow sees no GPU" in choose_engine(model, None, particles, True, 1)[1]


@pytest.mark.parametrize("cell", ["gru", "transformer"])
def test_half_precision_learns_as_single_does(cell):
    """Its arithmetic, on a CPU; training refuses it there."""
    found = []
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            optimizer = keras.optimizers.Adam(0.01)
            if policy != "float32":
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
            model, engine = engine_of("inclusive", optimizer, cell=cell, units=6)
        finally:
            keras.config.set_dtype_policy("float32")
        batches = SimpleNamespace(shuffled=lambda seed, epoch: [batch_of([5, 0, 40, 12])] * 20)
        found.append([result.loss for result in engine.train(batches, 1, 0)])
        assert model.get_layer("scores").compute_dtype == "float32"
        assert all(weight.dtype == np.float32 for weight in model.get_weights())
    assert found[0][-1] < 0.9 * found[0][0]
    assert found[1] == pytest.approx(found[0], rel=0.02)
