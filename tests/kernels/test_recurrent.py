"""The recurrent kernel against arithmetic in float64, and against padded, masked Keras."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.recurrent_oracle import gru, lstm, stored_particles
from helpers.requirements import require
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask.analysis.scaling import Scaler
from hepdask.analysis.topology import expand_columns
from hepdask.analysis.topology.expand import expand as expand_float64
from hepdask.kernels import KernelMissing, build
from hepdask.kernels import recurrent as kernel_module
from hepdask.kernels.recurrent import Recurrent, Rows, Stored, Weights, expand

GATES = {"gru": 3, "lstm": 4}


@pytest.fixture(autouse=True, scope="module")
def _compiler():
    require(build.compiler(), "there is no C++ compiler")


ORACLES = {"gru": gru, "lstm": lstm}


def random_weights(cell, features, units, rng, scale=0.3):
    outputs = GATES[cell] * units
    shapes = (features, outputs), (units, outputs), (2, outputs) if cell == "gru" else (outputs,)
    return Weights(*(rng.normal(size=shape, scale=scale).astype(np.float32) for shape in shapes))


def jagged(lengths, features, rng):
    length = np.array(lengths, np.int64)
    return rng.normal(size=(length.sum(), features)).astype(np.float32), np.cumsum(length) - length, length


def close(found, wanted, tolerance=1e-5):
    """Equal to a part in 100,000 of the largest value of the tensor."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max(initial=0) <= tolerance * np.abs(wanted).max(initial=1e-30) + 1e-12


def check(cell, units, features, lengths, seed, recurrent=None):
    rng = np.random.default_rng(seed)
    weights = random_weights(cell, features, units, rng)
    rows, first, length = jagged(lengths, features, rng)
    gradient = rng.normal(size=(len(lengths), units)).astype(np.float32)
    recurrent = recurrent or Recurrent(cell)
    state = recurrent.forward(weights, Rows(rows), first, length)
    found = recurrent.backward(gradient)
    events = [
        ORACLES[cell](weights, rows[a : a + n], d) for a, n, d in zip(first, length, gradient, strict=True)
    ]
    close(state, np.array([last for last, _ in events]))
    for place, name in enumerate(("kernel", "recurrent", "bias")):
        close(getattr(found, name), np.sum([gradients[place] for _, gradients in events], axis=0))
    assert (recurrent.forward(weights, Rows(rows), first, length, keep=False) == state).all()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(("features", "units"), [(19, 50), (3, 7), (1, 1), (19, 64)])
def test_states_and_gradients_are_those_of_float64(cell, features, units):
    check(
        cell, units, features, [0, 1, 801, 2, 63, 64, 65, 17, 16, 15, 128, 0, 30, 30, 30, 30, 30, 200, 7], 5
    )


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=40),
    units=st.integers(4, 30), features=st.integers(1, 20), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_events(cell, lengths, units, features, seed):
    check(cell, units, features, lengths, seed)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_padded_masked_keras_layer_agrees(cell):
    import keras
    import tensorflow as tf

    rng = np.random.default_rng(2)
    rows, first, length = jagged([801, 1, 40, 40, 39, 7], 19, rng)
    layer = keras.layers.GRU(50) if cell == "gru" else keras.layers.LSTM(50)
    padded = np.zeros((len(length), 801, 19), np.float32)
    for event, (a, n) in enumerate(zip(first, length, strict=True)):
        padded[event, :n] = rows[a : a + n]
    gradient = rng.normal(size=(len(length), 50)).astype(np.float32)
    masked = keras.layers.Masking(0.0)
    with tf.GradientTape() as tape:
        wanted = layer(masked(padded))
        total = tf.reduce_sum(wanted * gradient)
    wanted_gradients = tape.gradient(total, layer.trainable_variables)
    recurrent = Recurrent(cell)
    found = recurrent.forward(Weights(*layer.get_weights()), Rows(rows), first, length)
    gradients = recurrent.backward(gradient)
    close(found, wanted.numpy())
    for mine, theirs in zip(
        (gradients.kernel, gradients.recurrent, gradients.bias), wanted_gradients, strict=True
    ):
        close(mine, theirs.numpy())


def test_threads_and_order_do_not_matter():
    rng = np.random.default_rng(8)
    weights = random_weights("gru", 19, 50, rng)
    rows, first, length = jagged(rng.integers(0, 120, 100), 19, rng)
    gradient = rng.normal(size=(100, 50)).astype(np.float32)
    results = []
    for threads in (1, 3):
        recurrent = Recurrent("gru", threads)
        state = recurrent.forward(weights, Rows(rows), first, length)
        results.append((state, recurrent.backward(gradient)))
    assert (results[0][0] == results[1][0]).all()
    for name in ("kernel", "recurrent", "bias"):
        assert (getattr(results[0][1], name) == getattr(results[1][1], name)).all()
    shuffled = rng.permutation(100)
    assert (
        Recurrent("gru").forward(weights, Rows(rows), first[shuffled], length[shuffled]) == state[shuffled]
    ).all()


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_every_kind_of_processor(target, monkeypatch, tmp_path):
    """The same source for narrower registers, as far as this machine can run them."""
    levels = ["x86-64", *reversed(build._LEVELS)]
    here = build.target()
    require(
        here and levels.index(here[0].removeprefix("-march=")) >= levels.index(target), f"no {target} here"
    )
    loaded = ctypes.CDLL(str(build.build("recurrent", tmp_path, (f"-march={target}",))))
    monkeypatch.setattr(kernel_module, "library", lambda kernel: loaded)
    for cell in ("gru", "lstm"):
        check(cell, 50, 19, [0, 1, 70, 64, 5, 90, 33, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 6, Recurrent(cell))


def test_features_are_made_as_everywhere_else():
    rng = np.random.default_rng(7)
    columns = stored_particles(1003, rng)
    chosen = [18, 0, 3, 1, 2, 17, 4, 13, 7]
    plain = Scaler(np.zeros(19, np.float32), np.ones(19, np.float32))
    wanted = expand_float64(columns, np.float64)[chosen].T
    found = expand(Stored(columns, plain, chosen))
    momentum = np.maximum(
        np.abs(wanted), columns["Pt"][:, None]
    )  # a component may cancel, the vector does not
    assert (np.abs(found - wanted) <= 1e-6 * momentum).all()
    scaler = Scaler(rng.normal(size=19).astype(np.float32), rng.uniform(0.1, 2, 19).astype(np.float32))
    rows = scaler(np.stack(list(expand_columns(columns).values()), axis=1))
    assert expand(Stored(columns, scaler, range(19))) == pytest.approx(rows, rel=1e-5, abs=1e-5)


def test_stored_particles_give_the_same_states_as_their_rows():
    rng = np.random.default_rng(9)
    length = rng.integers(0, 60, 40)
    first = np.cumsum(length) - length
    scaler = Scaler(rng.normal(size=19).astype(np.float32), rng.uniform(0.05, 0.1, 19).astype(np.float32))
    stored = Stored(stored_particles(int(length.sum()), rng), scaler, range(19))
    weights = random_weights("gru", 19, 50, rng)
    recurrent = Recurrent("gru")
    found = recurrent.forward(weights, stored, first, length)
    assert found == pytest.approx(recurrent.forward(weights, Rows(expand(stored)), first, length), abs=1e-6)


def test_a_weight_that_is_no_number_shows_in_the_state():
    rng = np.random.default_rng(1)
    weights = random_weights("gru", 3, 4, rng)
    weights.kernel[0, 0] = np.nan
    rows, first, length = jagged([2, 0], 3, rng)
    state = Recurrent("gru").forward(weights, Rows(rows), first, length)
    assert np.isnan(state[0]).any()
    assert (state[1] == 0).all()


def test_wrong_use_is_refused():
    rng = np.random.default_rng(1)
    rows, first, length = jagged([3], 3, rng)
    with pytest.raises(ValueError, match="are not those of Keras' LSTM"):
        Recurrent("lstm").forward(random_weights("gru", 3, 4, rng), Rows(rows), first, length)
    recurrent = Recurrent("gru")
    recurrent.forward(random_weights("gru", 3, 4, rng), Rows(rows), first, length, keep=False)
    with pytest.raises(RuntimeError, match="needs a forward"):
        recurrent.backward(np.zeros((1, 4), np.float32))


def test_ranks_that_build_at_once_end_with_one_whole_library(tmp_path):
    code = (
        "from hepdask.kernels import build; from pathlib import Path; "
        f"print(build.build('recurrent', Path({str(tmp_path)!r})))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    paths = {process.communicate(timeout=300)[0].strip() for process in started}
    assert len(paths) == 1
    assert [str(path) for path in tmp_path.iterdir()] == list(paths)
    ctypes.CDLL(paths.pop())


def test_without_a_compiler_the_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelMissing, match="apt install g"):
        build.build("recurrent", tmp_path)
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no such language >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(KernelMissing, match="no such language"):
        build.build("dense", tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []
