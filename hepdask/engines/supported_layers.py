"""What a network is made of, as far as the compiled kernels can compute it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from hepdask.engines.optimizers import rule_of
from hepdask.kernels.dense import ACTIVATIONS, ADAM, DenseStack

#: What a dense layer must do without.
_EXTRAS = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


@dataclass(frozen=True)
class Chain:
    """Dense layers, one after the other, with a softmax behind the last one and nowhere else.

    Attributes
    ----------
    layers : list of keras.layers.Dense
        With biases and activations of the kernel.
    dropouts : list of float
        Rate of the dropout behind each.
    input_dropout : float
        The same in front of the first.
    """

    layers: list[Any]
    dropouts: list[float]
    input_dropout: float

    @property
    def widths(self) -> list[int]:
        """Features, then the units of each layer."""
        return [self.layers[0].kernel.shape[0], *(layer.units for layer in self.layers)]

    @property
    def weights(self) -> list[Any]:
        """Kernel and bias of one layer after the other."""
        return [variable for layer in self.layers for variable in (layer.kernel, layer.bias)]

    def kernel(self, optimizer: Any, before: int = 0) -> DenseStack:
        """Set up the compiled kernel for these layers and an optimizer; None to score only."""
        activations = [_activation(layer) for layer in self.layers]
        rule = ADAM if optimizer is None else rule_of(optimizer)
        return DenseStack(self.widths, activations, self.dropouts, rule, self.input_dropout, before)


def dense_chain(model: Any) -> Chain | None:
    """Find the layers of a network that takes high-level features; None where the kernel cannot train it."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    return _chain(layers, model.input["high_level"], model.output)


def recurrent_layer(model: Any) -> Any:
    """Find the recurrent layer of a network; None where there is none, more than one, or an unusual one.

    Usual is a GRU or LSTM as Keras makes them by default: on all particles, in their order, with the last state for an
    answer.
    """
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.GRU | keras.layers.LSTM)]
    return found[0] if len(found) == 1 and _is_usual(found[0]) else None


def recurrent_chain(model: Any) -> tuple[Any, Chain] | None:
    """Find the layers of a network that takes particles; None where the kernels cannot train it.

    That is the recurrent layer and, behind it, perhaps joined by the high-level features, a chain of dense layers.
    """
    recurrent = recurrent_layer(model)
    if recurrent is None or recurrent.compute_dtype != "float32":
        return None
    made = (keras.layers.InputLayer, keras.layers.Masking, type(recurrent))
    layers = [layer for layer in model.layers if not isinstance(layer, made)]
    start = recurrent.output
    if "high_level" not in model.input:
        chain = _chain(layers, start, model.output)
        return (recurrent, chain) if chain else None
    joints = [layer for layer in layers if isinstance(layer, keras.layers.Concatenate)]
    if len(joints) != 1 or len(joints[0].input) != 2:
        return None
    layers.remove(joints[0])
    rates = []
    for branch, origin in zip(joints[0].input, (start, model.input["high_level"]), strict=True):
        dropout = next((layer for layer in layers if _is_dropout(layer) and layer.output is branch), None)
        if dropout is not None:
            layers.remove(dropout)
        if (branch if dropout is None else dropout.input) is not origin:
            return None
        rates.append(0.0 if dropout is None else dropout.rate)
    chain = _chain(layers, joints[0].output, model.output)
    if chain is None or chain.input_dropout or rates[0] != rates[1]:
        return None
    return recurrent, Chain(chain.layers, chain.dropouts, rates[0])


def _chain(layers: Sequence[Any], start: Any, end: Any) -> Chain | None:
    """Read layers from the one that takes `start` to the one that returns `end`."""
    if not layers or any(len(layer._inbound_nodes) != 1 for layer in layers):
        return None
    if layers[0].input is not start or layers[-1].output is not end:
        return None
    if any(layer.input is not before.output for before, layer in itertools.pairwise(layers)):
        return None
    dense: list[Any] = []
    rates = [0.0]  # in front of the first dense layer, and behind each
    for before, layer in itertools.pairwise([None, *layers]):
        if _is_plain(layer):
            dense.append(layer)
            rates.append(0.0)
        elif _is_dropout(layer) and not (before is not None and _is_dropout(before)):
            rates[-1] = layer.rate
        else:
            return None
    activations = [_activation(layer) for layer in dense]
    softmax = [name == "softmax" for name in activations]
    ends = bool(dense) and softmax[-1] and not any(softmax[:-1]) and not rates[-1]
    return Chain(dense, rates[1:], rates[0]) if ends and set(activations) <= set(ACTIVATIONS) else None


def _is_usual(layer: Any) -> bool:
    settings = layer.get_config()
    usual = (
        settings["activation"] == "tanh"
        and settings["recurrent_activation"] == "sigmoid"
        and settings["use_bias"]
    )
    unusual = ("return_sequences", "return_state", "go_backwards", "stateful", "dropout", "recurrent_dropout")
    return bool(usual and not any(settings[key] for key in unusual) and settings.get("reset_after", True))


def _is_plain(layer: Any) -> bool:
    if type(layer) is not keras.layers.Dense or layer.compute_dtype != "float32":
        return False
    settings = layer.get_config()
    return layer.use_bias and layer.trainable and not any(settings.get(extra) for extra in _EXTRAS)


def _is_dropout(layer: Any) -> bool:
    return type(layer) is keras.layers.Dropout and layer.noise_shape is None


def _activation(layer: Any) -> str:
    return str(keras.activations.serialize(layer.activation))
