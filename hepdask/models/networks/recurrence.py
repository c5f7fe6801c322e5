"""Networks with a GRU or LSTM on events of any number of particles, as each backend of Keras is fast with them.

A mask made from zero rows costs a layer the fast recurrence of a GPU: cuDNN takes no event without particles, and Keras
on PyTorch no mask at all. Here the numbers of particles are given instead. They become a mask that cuDNN takes, or a
packed sequence on PyTorch with a GPU. Where there is no GPU, and on JAX, Keras loops over masked steps.
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
    ops = keras.ops
    if length is None:
        return layer(rows)
    some = ops.maximum(length, 1)  # a fast recurrence needs one, even of zeros
    if _is_packed(rows):
        state = _packed(layer, rows, some)
    else:
        places = ops.arange(ops.shape(rows)[1], dtype=some.dtype)
        state = layer(rows, mask=places < ops.expand_dims(some, 1))
    return ops.where(ops.expand_dims(length, 1) > 0, state, ops.zeros_like(state))


def _is_packed(rows: Any) -> bool:
    return keras.backend.backend() == "torch" and rows.is_cuda


def _packed(layer: Any, rows: Any, length: Any) -> Any:
    """PyTorch's own kernels on a packed sequence, with gates in its order and a bias for each side."""
    import torch

    is_gru = isinstance(layer, keras.layers.GRU)
    given = rows, layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias
    x, kernel, recurrent, bias = (
        keras.ops.cast(keras.ops.convert_to_tensor(tensor), layer.compute_dtype) for tensor in given
    )
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, length.cpu(), batch_first=True, enforce_sorted=False)
    sides = bias if is_gru else torch.stack([bias, torch.zeros_like(bias)])
    if is_gru:  # Keras: update, reset, new; PyTorch: reset, update, new
        kernel, recurrent, sides = (_swapped(torch, tensor) for tensor in (kernel, recurrent, sides))
    weights = [kernel.T.contiguous(), recurrent.T.contiguous(), sides[0], sides[1]]
    start = x.new_zeros(1, len(length), len(recurrent))
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
