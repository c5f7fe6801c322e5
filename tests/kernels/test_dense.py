"""The dense kernel against arithmetic in float64, and against Keras."""

import ctypes
import dataclasses
import itertools
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.requirements import require
from hypothesis import given, settings
from hypothesis import strategies as st

from hepdask import prepare
from hepdask.analysis.scaling import Scaler
from hepdask.batches.batch import Batches
from hepdask.distributed import Checkpoint
from hepdask.distributed.keras import DistributedOptimizer
from hepdask.engines.choice import choose_engine
from hepdask.engines.losses import loss
from hepdask.engines.supported_layers import dense_chain
from hepdask.kernels import build, dense
from hepdask.kernels.dense import DenseStack, Rows, Sample, records
from hepdask.store import Events
from hepdask.training.loop import train_rank


@pytest.fixture(autouse=True, scope="module")
def _compiler():
    require(build.compiler(), "there is no C++ compiler")


#: What an activation gives, and its slope.
ORACLES = {
    "linear": (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(x)), lambda x: np.where(x > 0, 1, np.exp(x))),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
}


def oracle(weights, activations, rows, labels, weight, masks=None):
    """In float64: loss, n_correct, the gradients one behind the other, and how large the numbers are they add up from.

    Hidden values are multiplied with masks.
    """
    masks = [*(masks or [1.0] * len(activations)), 1.0]
    values, sums = [rows.astype(np.float64)], []
    for (kernel, bias), activation, mask in zip(weights, [*activations, "linear"], masks, strict=True):
        sums.append(values[-1] @ kernel.astype(np.float64) + bias)
        values.append(ORACLES[activation][0](sums[-1]) * mask)
    logits = sums[-1] - sums[-1].max(axis=1, keepdims=True)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    here = np.arange(len(labels)), labels
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[here]
    d = scores.copy()
    d[here] -= 1
    d *= weight[:, None]
    gradients, sizes = [], []
    for place in reversed(range(len(weights))):
        gradients = [values[place].T @ d, d.sum(axis=0), *gradients]
        sizes = [(np.abs(values[place]).T @ np.abs(d)).max(), np.abs(d).sum(axis=0).max(), *sizes]
        if place:
            d = (
                d
                @ weights[place][0].astype(np.float64).T
                * (ORACLES[activations[place - 1]][1](sums[place - 1]) * masks[place - 1])
            )
    n_correct = ((logits.argmax(axis=1) == labels) & (weight > 0)).sum()
    return (losses * weight).sum(), n_correct, gradients, sizes


def random_stack(widths, activations, rng, dropouts=None):
    stack = DenseStack(widths, [*activations, "softmax"], dropouts and [*dropouts, 0.0])
    weights = [
        (
            rng.normal(size=(k, n), scale=0.5 / np.sqrt(k)).astype(np.float32),
            rng.normal(size=n, scale=0.2).astype(np.float32),
        )
        for k, n in itertools.pairwise(widths)
    ]
    stack.weights[:] = np.concatenate([np.ravel(array) for layer in weights for array in layer])
    return stack, weights


def close(found, wanted, size=0.0):
    """Equal to a part in 100,000 of the largest value of the tensor.

    Where what is added up cancels, single precision allows for a few roundings of sums of that `size`.
    """
    allowed = max(1e-5 * np.abs(wanted).max(), 4 * np.finfo(np.float32).eps * size) + 1e-9
    assert np.abs(np.reshape(found, wanted.shape) - wanted).max() <= allowed


def pieces(flat, arrays):
    return np.split(flat, np.cumsum([array.size for array in arrays])[:-1])


def check(widths, activations, events, batch_size, ranks, seed):
    rng = np.random.default_rng(seed)
    stack, weights = random_stack(widths, activations, rng)
    rows = rng.normal(size=(events + 3, widths[0])).astype(np.float32)
    labels = rng.integers(0, widths[-1], len(rows))
    class_weights = rng.uniform(0, 2, widths[-1]).astype(np.float32)
    order = rng.permutation(len(rows))[:events]
    batch = int(rng.integers(-(-events // batch_size)))
    chosen = order[batch * batch_size :][:batch_size]
    total, found_loss, found_hits = 0, 0, 0
    for rank in range(ranks):
        sample = Sample(records(rows, labels), class_weights, order, batch_size, rank, ranks)
        part_loss, part_hits = stack.differentiate(sample, batch)
        total, found_loss, found_hits = (
            total + stack.gradients,
            found_loss + part_loss,
            found_hits + part_hits,
        )
    weight = class_weights[labels[chosen]].astype(np.float64) / len(chosen)
    wanted_loss, wanted_hits, wanted, sizes = oracle(
        weights, activations, rows[chosen], labels[chosen], weight
    )
    assert found_loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found_hits == wanted_hits
    for mine, theirs, size in zip(pieces(total, wanted), wanted, sizes, strict=True):
        close(mine, theirs, size)


@pytest.mark.parametrize("batch_size", [1, 128, 300, 1000])
def test_gradients_of_the_published_network_are_those_of_float64(batch_size):
    check([14, 50, 20, 10, 3], ["relu"] * 3, 700, batch_size, 1, 3)


@settings(max_examples=60, deadline=None)
@given(
    hidden=st.lists(st.tuples(st.integers(1, 70), st.sampled_from(list(ORACLES))), max_size=4),
    features=st.integers(1, 40), classes=st.integers(2, 6), events=st.integers(1, 90),
    batch_size=st.integers(1, 60), ranks=st.integers(1, 3), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_network_and_any_batch(hidden, features, classes, events, batch_size, ranks, seed):
    widths = [features, *(units for units, _ in hidden), classes]
    check(widths, [name for _, name in hidden], events, batch_size, ranks, seed)


#: A network with dropout, trained on 500 events in batches of 61.
DROPPED = {"widths": [5, 40, 30, 3], "activations": ["tanh", "elu"], "dropouts": [0.4, 0.25]}


def dropped(seed=(3, 7), dropouts=None, **settings):
    rng = np.random.default_rng(8)
    stack, weights = random_stack(**DROPPED | ({"dropouts": dropouts} if dropouts else {}), rng=rng)
    rows, labels = rng.normal(size=(500, 5)).astype(np.float32), rng.integers(0, 3, 500)
    sample = Sample(
        records(rows, labels), np.array([0.5, 1, 2], np.float32), rng.permutation(500), 61, seed=seed
    )
    return stack, weights, rows, labels, dataclasses.replace(sample, **settings)


def masks_of(stack, sample):
    """Find out what was kept of each hidden layer: of one event, a kernel has a gradient where its input is not 0."""
    alone = dataclasses.replace(sample, batch_size=1)
    kept = [np.empty((len(sample.order), units), bool) for units in (40, 30)]
    for event in range(len(sample.order)):
        stack.differentiate(alone, event)
        second = stack.gradients[6 * 40 :][: 40 * 30].reshape(40, 30)
        third = stack.gradients[6 * 40 + 41 * 30 :][: 30 * 3].reshape(30, 3)
        kept[0][event], kept[1][event] = (second != 0).any(axis=1), (third != 0).any(axis=1)
    return kept


def test_dropout_drops_at_random_and_each_epoch_others():
    stack, _, _, _, sample = dropped()
    other = dataclasses.replace(sample, seed=(3, 8))
    masks, others = masks_of(stack, sample), masks_of(stack, other)
    for kept, later, rate in zip(masks, others, DROPPED["dropouts"], strict=True):
        spread = np.sqrt(rate * (1 - rate))
        assert abs(kept.mean() - (1 - rate)) < 5 * spread / np.sqrt(kept.size)
        for axis in (0, 1):  # as many of each unit, and of each event
            pulls = (kept.mean(axis=axis) - (1 - rate)) * np.sqrt(kept.shape[axis]) / spread
            assert np.abs(pulls).max() < 5
            assert 0.5 < pulls.std() < 1.5
        for one, two in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept, later)):
            assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / np.sqrt(one.size)


def test_gradients_under_dropout_are_those_of_float64_under_the_same_masks():
    stack, weights, rows, labels, sample = dropped()
    masks = [
        kept / (1 - rate) for kept, rate in zip(masks_of(stack, sample), DROPPED["dropouts"], strict=True)
    ]
    batch = slice(4 * 61, 5 * 61)
    chosen = sample.order[batch]
    weight = sample.class_weights[labels[chosen]] / np.float64(61)
    wanted_loss, wanted_hits, wanted, _ = oracle(
        weights, DROPPED["activations"], rows[chosen], labels[chosen], weight, [mask[batch] for mask in masks]
    )
    found_loss, found_hits = stack.differentiate(sample, 4)
    assert found_loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found_hits == wanted_hits
    for mine, theirs in zip(pieces(stack.gradients, wanted), wanted, strict=True):
        close(mine, theirs)
    total = np.zeros_like(stack.gradients)
    for rank in range(3):
        stack.differentiate(dataclasses.replace(sample, rank=rank, ranks=3), 4)
        total += stack.gradients
    for mine, theirs in zip(pieces(total, wanted), wanted, strict=True):
        close(mine, theirs)


def test_dropout_does_not_depend_on_how_steps_are_cut_into_calls():
    found = []
    for cuts in ([9], [1, 5, 3]):
        stack, *_, sample = dropped()
        first, losses = 0, []
        for steps in cuts:
            losses += list(stack.steps(sample, first, stack.rule.rates(0.01, first, steps))[0])
            first += steps
        found.append((losses, stack.weights.tolist()))
    assert found[0] == found[1]


def rows_of(events, widths, rng):
    return Rows(
        rng.normal(size=(events, widths[0])).astype(np.float32),
        rng.integers(0, widths[-1], events),
        rng.uniform(0, 2, events).astype(np.float32) * (rng.random(events) < 0.8),
        rng.permutation(10 * events)[:events].astype(np.uint64),
        (3, 7),
    )


@pytest.mark.parametrize("events", [0, 1, 16, 61, 1000])
@pytest.mark.parametrize("input_dropout", [0.0, 0.2])
def test_gradients_of_rows_are_those_of_float64_and_reach_what_made_them(events, input_dropout):
    """Masks of the inputs are read off the first layer's gradients, one event at a time."""
    rng = np.random.default_rng(events)
    widths, activations, before = [64, 25, 4, 3], ["relu", "elu"], 5
    stack = DenseStack(widths, [*activations, "softmax"], input_dropout=input_dropout, before=before)
    _, weights = random_stack(widths, activations, rng)
    stack.weights[before:] = np.concatenate([np.ravel(array) for layer in weights for array in layer])
    rows = rows_of(events, widths, rng)
    masks = np.ones((events, 64))
    if input_dropout:
        ones = dataclasses.replace(rows, values=np.ones_like(rows.values), weight=np.ones_like(rows.weight))
        for event in range(events):
            one = slice(event, event + 1)
            alone = dataclasses.replace(
                ones,
                values=ones.values[one],
                label=ones.label[one],
                weight=ones.weight[one],
                place=ones.place[one],
            )
            stack.differentiate_rows(alone)
            masks[event] = stack.gradients[before:][: 64 * 25].reshape(64, 25).any(axis=1) / (
                1 - input_dropout
            )
        if events == 1000:
            assert abs((masks > 0).mean() - 0.8) < 5 * 0.4 / np.sqrt(masks.size)
    wanted_loss, wanted_hits, wanted, wanted_passed = oracle_of_rows(
        weights, activations, rows.values * masks, rows.label, rows.weight
    )
    found_loss, found_hits, passed = stack.differentiate_rows(rows)
    assert found_loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found_hits == wanted_hits
    if events:
        close(passed, wanted_passed * masks)
        for mine, theirs in zip(pieces(stack.gradients[before:], wanted), wanted, strict=True):
            close(mine, theirs)
    assert not stack.gradients[:before].any(), "those are not its own"
    stack.gradients[:] = 1.0
    stack.update(0.5)
    assert (stack.weights[:before] < 0).all(), "the other weights move with these"


def oracle_of_rows(weights, activations, rows, labels, weight):
    loss_, n_correct, gradients, _ = oracle(weights, activations, rows, labels, weight.astype(np.float64))
    step = 1e-6
    passed = np.empty(rows.shape)
    for feature in range(rows.shape[1]):
        moved = np.zeros(rows.shape[1])
        moved[feature] = step
        passed[:, feature] = (
            losses_of(weights, activations, rows + moved, labels)
            - losses_of(weights, activations, rows - moved, labels)
        ) / (2 * step)
    return loss_, n_correct, gradients, passed * weight[:, None]


def losses_of(weights, activations, rows, labels):
    values = rows.astype(np.float64)
    for (kernel, bias), activation in zip(weights, [*activations, "linear"], strict=True):
        values = ORACLES[activation][0](values @ kernel.astype(np.float64) + bias)
    return np.log(np.exp(values).sum(axis=1)) - values[np.arange(len(labels)), labels]


def test_scores_of_rows_are_those_of_records():
    stack, _ = random_stack([5, 8, 3], ["tanh"], np.random.default_rng(2), dropouts=[0.3])
    rows = rows_of(37, [5, 8, 3], np.random.default_rng(3))
    found = stack.scores_of_rows(rows)
    assert (found == stack.scores(records(rows.values, rows.label), np.arange(37))).all()
    with pytest.raises(ValueError, match="do not fit a network of 5 features"):
        stack.scores_of_rows(dataclasses.replace(rows, values=rows.values[:, :4]))


def test_dropout_of_0_is_none_and_scores_know_no_dropout():
    plain, weights, rows, _, sample = dropped(dropouts=[0.0, 0.0])
    without, _ = random_stack(DROPPED["widths"], DROPPED["activations"], np.random.default_rng(8))
    under, *_ = dropped()
    order = np.arange(500)[::-1]
    assert (under.scores(sample.records, order) == without.scores(sample.records, order)).all()
    for stack in (plain, without):
        stack.steps(sample, 0, stack.rule.rates(0.01, 0, 9))
    assert (plain.weights == without.weights).all()
    values = rows[order].astype(np.float64)
    for (kernel, bias), activation in zip(weights, [*DROPPED["activations"], "linear"], strict=True):
        values = ORACLES[activation][0](values @ kernel + bias)
    wanted = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    assert under.scores(sample.records, order) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_every_kind_of_processor(target, monkeypatch, tmp_path):
    """The same source for narrower registers, as far as this machine can run them."""
    levels = ["x86-64", *reversed(build._LEVELS)]
    here = build.target()
    require(
        here and levels.index(here[0].removeprefix("-march=")) >= levels.index(target), f"no {target} here"
    )
    loaded = ctypes.CDLL(str(build.build("dense", tmp_path, (f"-march={target}",))))
    monkeypatch.setattr(dense, "library", lambda kernel: loaded)
    check([14, 50, 20, 10, 3], ["relu", "tanh", "elu"], 300, 128, 1, 4)
    test_gradients_under_dropout_are_those_of_float64_under_the_same_masks()


def events_of(rows, labels):
    nothing = np.zeros(len(labels), np.int64)
    return Events(np.zeros(len(labels) + 1, np.int64), {}, rows, labels, nothing, np.arange(len(labels)))


class InMemory:
    """A sample that was never in a store."""

    def __init__(self, events):
        self.whole = events

    def blocks(self):
        yield self.whole

    def __len__(self):
        return len(self.whole)


def network(activations=("relu", "tanh"), dropout=0.0, **settings):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((7,), name="high_level")
    x = inputs
    for units, activation in zip((20, 9), activations, strict=True):
        x = keras.layers.Dense(units, activation=activation, **settings)(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)
    return keras.Model({"high_level": inputs}, keras.layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        (keras.optimizers.Adam(), (0.01, 0.002)),
        (keras.optimizers.SGD(momentum=0.9), (0.1, 0.02)),
        (keras.optimizers.SGD(), (0.5, 0.1)),
        (keras.optimizers.RMSprop(), (0.01, 0.002)),
    ],
    ids=["adam", "sgd", "sgd without momentum", "rmsprop"],
)
def test_optimizer_steps_are_those_of_keras(optimizer, rates):
    """Two epochs of 20 steps, the last batch of each short, classes weighted, a rate that changes in between."""
    rng = np.random.default_rng(6)
    rows, labels = rng.random((19 * 32 + 5, 7), dtype=np.float32), rng.integers(0, 3, 19 * 32 + 5)
    same = Scaler(np.zeros(7, np.float32), np.ones(7, np.float32))
    weights = np.array([0.5, 2.0, 1.0])
    batches = Batches(
        InMemory(events_of(rows, labels)), same, list(range(7)), batch_size=32, class_weights=weights
    )
    models = [network(), network()]
    before = models[0].get_weights()
    same_kind = type(optimizer).from_config(optimizer.get_config())
    optimizers = [same_kind, DistributedOptimizer(same_kind, op="sum")]
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.build(model.trainable_variables)
    engine, engine_name = choose_engine(models[1], optimizers[1], None, kernel=True, threads=1)
    assert engine_name == "the compiled dense kernel"
    for epoch, rate in enumerate(rates):
        for optimizer in optimizers:
            optimizer.learning_rate.assign(rate)
        wanted = 0.0
        order = np.random.default_rng((1, epoch)).permutation(len(rows))
        for some in np.split(order, np.arange(32, len(order), 32)):
            with tf.GradientTape() as tape:
                weight = tf.constant(weights[labels[some]] / len(some), tf.float32)
                value = loss(models[0]({"high_level": rows[some]}), labels[some], weight)
            variables = models[0].trainable_variables
            optimizers[0].apply(tape.gradient(value, variables), variables)
            wanted += float(value) * len(some)
        results = list(engine.train(batches, 1, epoch))
        assert sum(result.loss for result in results) == pytest.approx(wanted, rel=1e-5)
        assert sum(result.size for result in results) == len(rows)
        for mine, theirs in zip(models[1].weights, models[0].weights, strict=True):
            close(mine.numpy(), theirs.numpy())
        for mine, theirs in zip(optimizers[1].variables, optimizers[0].variables, strict=True):
            close(mine.numpy(), theirs.numpy())
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(models[1].get_weights(), before, strict=True))


def test_a_network_with_dropout_learns_on_the_kernel_as_in_keras():
    """The masks differ; over many of them the mean loss does not."""
    model, optimizer = network(dropout=0.3), keras.optimizers.Adam(0.0)
    optimizer.build(model.trainable_variables)
    engine, engine_name = choose_engine(model, optimizer, None, kernel=True, threads=1)
    assert engine_name == "the compiled dense kernel"
    assert dense_chain(model).dropouts == [0.3, 0.3, 0.0]
    rng = np.random.default_rng(9)
    rows, labels = rng.normal(size=(20000, 7)).astype(np.float32), rng.integers(0, 3, 20000)
    same = Scaler(np.zeros(7, np.float32), np.ones(7, np.float32))
    batches = Batches(InMemory(events_of(rows, labels)), same, list(range(7)), batch_size=1000)
    losses = np.array([[result.loss for result in engine.train(batches, 1, epoch)] for epoch in range(8)])
    scores = [model({"high_level": np.tile(rows, (4, 1))}, training=training) for training in (True, False)]
    kept, plain = (
        keras.losses.sparse_categorical_crossentropy(np.tile(labels, 4), found).numpy() for found in scores
    )
    mine, theirs, without = losses.sum() / 160000, kept.mean(), plain.mean()
    error = np.sqrt((kept - plain).var() * (1 / 80000 + 1 / 160000))
    assert abs(mine - theirs) < 5 * error
    assert abs(mine - without) > 10 * error, "dropout shows in the loss"
    watched = sum(result.loss for result in engine.validate(batches))
    assert watched / 20000 == pytest.approx(without, rel=1e-5)


KILLED = """
import os, signal, sys
from hepdask.config import Config
from hepdask.distributed import Checkpoint
from hepdask.training.loop import train_rank

class Fatal(Checkpoint):
    def save(self, shared, per_rank=None):
        super().save(shared, per_rank)
        if len(shared["history"]) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

config = Config.model_validate_json(open(sys.argv[1]).read())
train_rank("hlf", config, config.store_path, checkpoint=Fatal(sys.argv[2]))
"""


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(make_config, client, tmp_path):
    config = make_config(
        models={
            "hlf": {"epochs": 4, "batch_size": 16, "dropout": 0.2, "activation": "elu", "optimizer": "sgd"}
        }
    )
    prepare(config, client)
    document, folder = tmp_path / "config.json", tmp_path / "checkpoint"
    document.write_text(config.model_dump_json(exclude_unset=True))
    folder.mkdir()
    command = [sys.executable, "-c", KILLED, str(document), str(folder)]
    assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
    saved = Checkpoint(folder)
    assert len(saved.load().shared["history"]) == 2
    resumed = train_rank("hlf", config, config.store_path, checkpoint=saved)
    whole = train_rank("hlf", config, config.store_path)
    assert resumed.engine_name == "the compiled dense kernel"
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    weights = []
    for number, trained in enumerate((resumed, whole)):
        file = tmp_path / f"{number}.keras"
        file.write_bytes(trained.keras_file)
        weights.append(keras.models.load_model(file, compile=False).get_weights())
    for mine, theirs in zip(*weights, strict=True):
        assert (mine == theirs).all()


def test_networks_of_another_kind_are_left_to_tensorflow():
    inputs = keras.Input((7,), name="high_level")
    dropped = keras.layers.Dense(3, activation="softmax")(keras.layers.GaussianDropout(0.2)(inputs))
    first, second = keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)
    assert dense_chain(network()) is not None
    for other in (
        keras.Model({"high_level": inputs}, dropped),
        keras.Model(
            {"high_level": inputs},
            keras.layers.Dense(3, activation="softmax")(keras.layers.Add()([first, second])),
        ),
        keras.Model({"high_level": inputs}, first),
        network(("gelu", "relu")),
        network(use_bias=False),
        network(kernel_regularizer="l2"),
    ):
        assert dense_chain(other) is None
    optimizer = keras.optimizers.Adam()
    model = network(use_bias=False)
    optimizer.build(model.trainable_variables)
    assert "TensorFlow (the kernel takes" in choose_engine(model, optimizer, None, kernel=True, threads=1)[1]


def test_a_value_that_is_no_number_shows_in_the_loss():
    rng = np.random.default_rng(2)
    for place in range(3):
        stack, _ = random_stack([2, 4, 3], ["relu"], rng)
        rows = rng.normal(size=(40, 2)).astype(np.float32)
        rows[37] = np.nan
        sample = Sample(
            records(rows, np.full(40, place)), np.ones(3, np.float32), np.arange(40), batch_size=10
        )
        losses, _ = stack.steps(sample, 0, np.full(4, 1e-3, np.float32))
        assert np.isfinite(losses).tolist() == [True, True, True, False]


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="no stack under one softmax"):
        DenseStack([3, 4, 2], ["softmax", "linear"])
    for rates in ([0.1], [0.1, 0.1], [1.0, 0.0]):
        with pytest.raises(ValueError, match="does not fit the layers"):
            DenseStack([3, 4, 2], ["relu", "softmax"], rates)
    stack = DenseStack([3, 2], ["softmax"])
    rows = records(np.zeros((5, 3), np.float32), np.zeros(5, int))
    with pytest.raises(ValueError, match="not among the 5"):
        stack.differentiate(Sample(rows, np.ones(2, np.float32), np.array([5]), 1), 0)
    with pytest.raises(ValueError, match="do not fit the network"):
        stack.differentiate(Sample(rows, np.ones(3, np.float32), np.array([0]), 1), 0)
