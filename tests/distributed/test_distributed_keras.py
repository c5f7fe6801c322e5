"""Keras on 1, 2 and 4 ranks: the same global batches give the same weights, whatever the options."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from distributed import Client, LocalCluster

from hepdask.distributed import NotSynchronised, RankOptions, run

cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS, BATCH = 50, 16


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def train():
    """Train one network in several ways on this rank's part of fixed global batches."""
    import keras
    import tensorflow as tf

    from hepdask.distributed import collective
    from hepdask.distributed import keras as hkeras

    data = np.random.default_rng(3)
    x = data.normal(size=(STEPS, BATCH, 5)).astype("f4")
    y = np.sin(x[:, :, :1] * x[:, :, 1:2]).astype("f4")
    here = slice(collective.rank(), None, collective.size())
    found = {}

    def network():
        keras.utils.set_random_seed(7)
        layers = [keras.layers.Input((5,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
        return keras.Sequential(layers)

    def steps(name, inner, op, batches=1, **options):
        """Take every global batch in so many pieces."""
        model = network()
        optimizer = hkeras.DistributedOptimizer(inner, op=op, **options)
        share = BATCH // batches // (collective.size() if op == "average" else 1)

        @tf.function
        def step(a, b):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(a, training=True) - b) ** 2) / share
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        for whole_x, whole_y in zip(x, y, strict=True):
            for a, b in zip(np.split(whole_x, batches), np.split(whole_y, batches), strict=True):
                step(a[here], b[here])
        hkeras.assert_synchronised([*model.trainable_variables, *optimizer.variables])
        found[name] = (model.get_weights(), int(optimizer.iterations))

    steps("sgd", keras.optimizers.SGD(0.05, momentum=0.9), "sum")
    steps("adam", keras.optimizers.Adam(0.01), "average")
    steps("clipped", keras.optimizers.SGD(0.05, global_clipnorm=0.1), "sum")
    steps("accumulated", keras.optimizers.SGD(0.05, momentum=0.9), "sum", batches=4, accumulate=4)
    steps("fp16", keras.optimizers.SGD(0.05, momentum=0.9), "sum", compression="fp16")

    # through fit, with another start on each rank, and accumulation
    model = network()
    keras.utils.set_random_seed(collective.rank())
    for variable in model.trainable_variables if collective.rank() else ():
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    inner = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(hkeras.DistributedOptimizer(inner, accumulate=2), loss="mse", jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((x[:, here], y[:, here]))
    history = model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[hkeras.Synchronise()])
    found["fit"] = (model.get_weights(), int(model.optimizer.iterations))
    found["loss"] = history.history["loss"]
    found["mean"] = hkeras.average_metrics({"rank": collective.rank(), "one": 1})

    # an optimizer that reduces nothing
    model.compile(keras.optimizers.SGD(0.05), loss="mse", jit_compile=False)
    try:
        model.fit(batches, shuffle=False, verbose=0, callbacks=[hkeras.Synchronise()])
        found["drift"] = None
    except NotSynchronised as error:
        found["drift"] = error.variables
    return found


def relative(found, expected):
    """Return the distance of all weights from the expected ones, over the length of those.

    Of all weights together: Adam divides by what may be small, so that in a tensor with small values the order
    of a sum alone makes 1.2e-6.
    """
    mine, theirs = (
        np.concatenate([w.ravel() for w in weights[0]], dtype="f8") for weights in (found, expected)
    )
    return np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def alone():
    return train()


def test_accumulated_batches_are_one_batch(alone):
    assert alone["accumulated"][1] == alone["sgd"][1] == STEPS
    assert relative(alone["accumulated"], alone["sgd"]) < 1e-6
    assert alone["fit"][1] == STEPS  # two epochs, two batches a step
    assert alone["drift"] is None
    assert alone["fp16"][0][0].dtype == np.float32


@pytest.mark.parametrize("ranks", [2, 4])
def test_horovod_ranks_train_as_one_does(horovod, client, mark, alone, ranks):
    together = run(train, client=client, ranks=ranks, options=RankOptions(env=mark))
    for name in ("sgd", "adam", "clipped", "accumulated", "fit"):
        for one in together:
            assert one[name][1] == alone[name][1]
            for mine, first in zip(one[name][0], together[0][name][0], strict=True):
                np.testing.assert_array_equal(mine, first)
        distance = relative(together[0][name], alone[name])
        print(f"{ranks} ranks, {name}: {distance:.1e}")
        assert distance <= 1e-6
    rounded = relative(together[0]["fp16"], alone["sgd"])
    print(f"{ranks} ranks, fp16: {rounded:.1e}")
    assert 1e-6 < rounded < 1e-2
    for one in together:
        assert one["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert one["mean"] == {"rank": (ranks - 1) / 2, "one": 1}
        assert set(one["drift"]) >= {"sequential_5/dense_10/kernel"}


def test_horovod_example(horovod, mark):
    """The documentation's example, as a reader would run it, on a cluster of its own."""
    script = Path(__file__).parents[2] / "docs" / "examples" / "digits.py"
    assert len(script.read_text().splitlines()) <= 200
    ran = subprocess.run(
        [sys.executable, str(script), "--epochs", "6"],
        capture_output=True, text=True, timeout=500, check=False, cwd=script.parents[2],
        env=os.environ | mark | {"PYTHONPATH": str(script.parents[2])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    right, tested = re.search(r"(\d+) of (\d+) digits read correctly by 2 rank", ran.stdout).groups()
    assert int(tested) == 360
    assert int(right) > 0.9 * 360
