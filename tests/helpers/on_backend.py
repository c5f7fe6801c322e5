"""Every network, forward and backward, on the backend that KERAS_BACKEND names: ``python on_backend.py OUT.npz``.

Weights and events are the same on all. In the file are, by network, its scores and the gradients by its weights.
"""

from __future__ import annotations

import sys

import numpy as np

LENGTHS = np.array([3, 0, 1, 33, 801, 2])
CLASSES = 3
NETWORKS = {
    "hlf": {"hidden": (6, 5)},
    **{f"{name}-{cell}": {"cell": cell, "units": 6} for name in ("sequence", "inclusive")
       for cell in ("gru", "lstm", "transformer")},
}  # fmt: skip


def events():
    """Particles, padded behind; high-level features; classes."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(len(LENGTHS), LENGTHS.max(), 19)).astype(np.float32)
    rows[np.arange(LENGTHS.max()) >= LENGTHS[:, None]] = 0
    high_level = rng.normal(size=(len(LENGTHS), 14)).astype(np.float32)
    return rows, high_level, rng.integers(0, CLASSES, len(LENGTHS))


def built(network):
    """Build a network with weights from a seed; dropout is off."""
    from hepdask import models
    from hepdask.config import Models
    from hepdask.config.feature_names import HIGH_LEVEL

    name = network.partition("-")[0]
    settings = Models.model_validate({name: {"dropout": 0.0, **NETWORKS[network]}})
    model = models.build(name, settings, models.inputs(name, settings, HIGH_LEVEL), CLASSES)
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape, scale=0.3).astype(np.float32) for w in model.get_weights()])
    return model


def differentiated(model, call):
    """Give scores, and the gradients of the summed cross-entropy by all weights."""
    import keras

    rows, high_level, label = events()
    ops, backend = keras.ops, keras.backend.backend()
    given = {"particles": rows, "high_level": high_level, "length": LENGTHS}
    names = ["length", *model.input]
    weights = model.trainable_variables

    def loss(inputs):
        scores = call(inputs, False)
        return ops.sum(keras.ops.sparse_categorical_crossentropy(label, scores)), scores

    inputs = {name: ops.convert_to_tensor(given[name]) for name in names}
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value, scores = loss(inputs)
        gradients = tape.gradient(value, [weight.value for weight in weights])
    elif backend == "torch":
        value, scores = loss(inputs)
        value.backward()
        gradients = [weight.value.grad for weight in weights]
    else:
        import jax

        def of_values(values):
            with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
                return loss(inputs)

        gradients, scores = jax.jit(jax.grad(of_values, has_aux=True))([weight.value for weight in weights])
    return [ops.convert_to_numpy(tensor) for tensor in (scores, *gradients)]


def main(path):
    import keras

    from hepdask.models.networks import recurrence
    from hepdask.models.networks.recurrence import forward, plain

    if keras.backend.backend() == "torch":  # as on a GPU
        recurrence._is_packed = lambda rows: True

    found = {}
    for network in NETWORKS:
        model = built(network)
        layers = [layer for layer in model.layers if isinstance(layer, keras.layers.GRU | keras.layers.LSTM)]
        call = forward(model, layers[0]) if layers else plain(model)
        for place, array in enumerate(differentiated(model, call)):
            found[f"{network} {place}"] = array
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
