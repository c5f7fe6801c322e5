"""Networks with a GRU or LSTM on events of any number of particles, by the fast recurrence of each of Keras' backends.

Keras' own layers take a mask, which costs them that recurrence: cuDNN takes no event without particles, and on PyTorch
a mask means a loop in Python. Here the numbers of particles are given instead. On TensorFlow they become the mask that
cuDNN takes, on PyTorch a packed sequence, on JAX a scan. Weights are those of the Keras layer in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

#: From tensors by name, and whether this is training, to class probabilities (n, classes).
Network = Callable[[Mapping[str, Any], bool], Any]


def plain(model: keras.Model) -> Network:
    """Take a network as it is; it needs no ``length``."""
    names = list(model.input)
    return lambda inputs, training: model({name: inputs[name] for name in names}, training=training)


def forward(model: keras.Model, layer: Any) -> Network:
    """Take a network by its recurrent layer.

    Parameters
    ----------
    model : keras.Model
        From `hepdask.models.build`.
    layer : keras.layers.GRU or keras.layers.LSTM
        Its layer, with Keras' defaults; GRU with ``reset_after``.

    Returns
    -------
    callable
        Like the model, with ``length``, int (n,), among the inputs: so many rows of ``particles`` are real, the others
        behind them take no part. Without it all do. The state of an event without particles is zero.
    """
    names = [name for name in model.input if name != "particles"]
    head = keras.Model([layer.output, *(model.input[name] for name in names)], model.output)

    def call(inputs: Mapping[str, Any], training: bool) -> Any:
        state = last_state(layer, inputs["particles"], inputs.get("length"))
        return head([state, *(inputs[name] for name in names)], training=training)

    return call


def last_state(layer: Any, rows: Any, length: Any = None) -> Any:
    """Give the state of a GRU or LSTM behind the last particle of each event, differentiable in its weights.

    Parameters
    ----------
    layer : keras.layers.GRU or keras.layers.LSTM
        As in `forward`.
    rows : tensor (n, longest, features)
        Particles, and padding behind them.
    length : int tensor (n,), optional
        Number of particles; by default all rows.

    Returns
    -------
    tensor (n, units)
        Zero where there is no particle.
    """
    ops, backend = keras.ops, keras.backend.backend()
    if length is None and backend == "tensorflow":
        return layer(rows)
    real = ops.full(ops.shape(rows)[:1], ops.shape(rows)[1], "int64") if length is None else length
    some = ops.maximum(real, 1)  # a fast recurrence needs one, even of zeros
    if backend == "tensorflow":
        state = layer(rows, mask=ops.arange(ops.shape(rows)[1]) < ops.expand_dims(ops.cast(some, "int32"), 1))
    else:
        cell, is_gru = layer.cell, isinstance(layer, keras.layers.GRU)
        given = (rows, cell.kernel, cell.recurrent_kernel, cell.bias)
        x, kernel, recurrent, bias = (
            ops.cast(ops.convert_to_tensor(tensor), layer.compute_dtype) for tensor in given
        )
        state = (_packed if backend == "torch" else _scanned)(is_gru, x, kernel, recurrent, bias, some)
    return ops.where(ops.expand_dims(real, 1) > 0, state, ops.zeros_like(state))


def _packed(is_gru: bool, rows: Any, kernel: Any, recurrent: Any, bias: Any, length: Any) -> Any:
    """PyTorch: its own kernels on a packed sequence, with gates in its order and a bias for each side."""
    import torch

    packed = torch.nn.utils.rnn.pack_padded_sequence(
        rows, length.cpu(), batch_first=True, enforce_sorted=False
    )
    sides = bias if is_gru else torch.stack([bias, torch.zeros_like(bias)])
    if is_gru:  # Keras: update, reset, new; PyTorch: reset, update, new
        kernel, recurrent, sides = (_swapped(torch, tensor) for tensor in (kernel, recurrent, sides))
    weights = [kernel.T.contiguous(), recurrent.T.contiguous(), sides[0], sides[1]]
    start = rows.new_zeros(1, len(length), len(recurrent))
    # biases; one layer, no dropout, whether gradients will be asked for; one direction
    options = True, 1, 0.0, torch.is_grad_enabled(), False
    if is_gru:
        last = torch.gru(packed.data, packed.batch_sizes, start, weights, *options)[1]
    else:
        last = torch.lstm(packed.data, packed.batch_sizes, (start, start), weights, *options)[1]
    return last[0].index_select(0, packed.unsorted_indices)


def _swapped(torch: Any, gates: Any) -> Any:
    update, reset, new = torch.chunk(gates, 3, dim=-1)
    return torch.cat([reset, update, new], dim=-1)


def _scanned(is_gru: bool, rows: Any, kernel: Any, recurrent: Any, bias: Any, length: Any) -> Any:
    """JAX: one scan over the places, of which an event's state passes over those behind its end."""
    import jax
    from jax import numpy as jnp

    of_input = jnp.swapaxes(rows @ kernel + (bias[0] if is_gru else bias), 0, 1)
    start = jnp.zeros((rows.shape[0], recurrent.shape[0]), rows.dtype)

    def gru(carry: Any, x: Any) -> Any:
        (state,) = carry
        update, reset, new = jnp.split(x, 3, axis=1)
        b_update, b_reset, b_new = jnp.split(state @ recurrent + bias[1], 3, axis=1)
        update, reset = jax.nn.sigmoid(update + b_update), jax.nn.sigmoid(reset + b_reset)
        return (update * state + (1 - update) * jnp.tanh(new + reset * b_new),)

    def lstm(carry: Any, x: Any) -> Any:
        state, memory = carry
        enter, forget, new, leave = jnp.split(x + state @ recurrent, 4, axis=1)
        memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(enter) * jnp.tanh(new)
        return jax.nn.sigmoid(leave) * jnp.tanh(memory), memory

    step = gru if is_gru else lstm

    def one(carry: Any, at: Any) -> Any:
        place, x = at
        goes_on = (place < length)[:, None]
        after = (jnp.where(goes_on, new, old) for new, old in zip(step(carry, x), carry, strict=True))
        return tuple(after), None

    carry = (start,) if is_gru else (start, start)
    return jax.lax.scan(one, carry, (jnp.arange(rows.shape[1]), of_input))[0][0]
