"""The networks: sizes, padding, and weights that go to plain Keras and come from it."""

import numpy as np
import pytest

from hepdask import models
from hepdask.config import Models
from hepdask.config.feature_names import HIGH_LEVEL
from hepdask.errors import InputError
from hepdask.models.weights import load_weights

GRU = 3 * (19 * 50 + 50 * 50 + 2 * 50)
LSTM = 4 * (19 * 50 + 50 * 50 + 50)
HLF = 14 * 50 + 50 + 50 * 20 + 20 + 20 * 10 + 10 + 10 * 3 + 3


def built(name, **settings):
    chosen = Models.model_validate({name: settings})
    return models.build(name, chosen, models.inputs(name, chosen, HIGH_LEVEL), 3)


@pytest.mark.parametrize(
    ("name", "settings", "parameters"),
    [
        ("hlf", {}, HLF),
        ("sequence", {}, GRU + 50 * 3 + 3),
        ("inclusive", {}, GRU + 64 * 25 + 25 + 25 * 3 + 3),
        ("inclusive", {"cell": "lstm"}, LSTM + 64 * 25 + 25 + 25 * 3 + 3),
    ],
)
def test_the_published_sizes(name, settings, parameters):
    assert built(name, **settings).count_params() == parameters


@pytest.mark.parametrize("cell", ["gru", "lstm", "transformer"])
@pytest.mark.parametrize("name", ["sequence", "inclusive"])
def test_padding_does_not_change_scores(name, cell):
    model = built(name, cell=cell, units=8)
    rng = np.random.default_rng(0)
    particles = rng.normal(size=(2, 7, 19)).astype("f4")
    more = {"high_level": rng.normal(size=(2, 14)).astype("f4")} if name == "inclusive" else {}
    longer = np.concatenate([particles, np.zeros((2, 50, 19), "f4")], axis=1)
    scores = model.predict({"particles": particles, **more}, verbose=0)
    assert scores == pytest.approx(model.predict({"particles": longer, **more}, verbose=0), abs=1e-6)
    assert scores.sum(axis=1) == pytest.approx(1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published inclusive classifier as its authors write it: other names, the branches the other way round."""
    import keras

    folder = tmp_path_factory.mktemp("published")
    high_level = keras.Input((14,), name="entry_hlf")
    particles = keras.Input((801, 19), name="entry_particles")
    x = keras.layers.Masking(0.0)(particles)
    x = keras.layers.GRU(50, activation="tanh", name="rnn")(x)
    joined = keras.layers.concatenate([keras.layers.Dropout(0.2)(x), keras.layers.Dropout(0.2)(high_level)])
    x = keras.layers.Dense(25, activation="relu")(joined)
    model = keras.Model([high_level, particles], keras.layers.Dense(3, activation="softmax")(x))
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape, scale=0.2) for w in model.get_weights()])
    for name in ("model.keras", "model.h5"):
        model.save(folder / name)
    model.save_weights(folder / "other.weights.h5")
    rows = rng.normal(size=(3, 801, 19)).astype("f4")
    rows[:, 30:] = 0
    values = rng.normal(size=(3, 14)).astype("f4")
    return folder, rows, values, model.predict([values, rows], verbose=0)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_published_weights_give_the_published_scores(published, name):
    folder, rows, values, wanted = published
    model = built("inclusive")
    load_weights(model, folder / name)
    found = model.predict({"particles": rows[:, :30], "high_level": values}, verbose=0)
    assert found == pytest.approx(wanted, abs=1e-6)


def test_weights_of_another_network_are_refused(published, tmp_path):
    folder, *_ = published
    with pytest.raises(InputError, match=r"holds no weights of shapes .* for the layer lstm"):
        load_weights(built("inclusive", cell="lstm"), folder / "model.keras")
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(built("inclusive"), folder / "other.weights.h5")
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(built("inclusive"), tmp_path / "missing.h5")
    model = built("hlf")
    model.save(tmp_path / "small.keras")
    with pytest.raises(InputError, match="holds no weights"):
        load_weights(built("inclusive"), tmp_path / "small.keras")
