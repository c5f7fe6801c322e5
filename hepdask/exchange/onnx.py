"""A trained network as an ONNX graph that takes physical features: scaling stands in the graph.

Layers of Keras are translated one by one; what each becomes stands in `_LAYERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.config.feature_names import PARTICLE
from hepdask.errors import ConfigError, MissingDependency
from hepdask.models.record import ModelRecord, Scaling

#: Version of the operators, old enough for every runtime of the last years.
_OPSET = 17

_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


class _Graph:
    """An ONNX graph while it grows."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: NDArray) -> str:
        """Add numbers; give their name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, used: int = 0, **settings: Any) -> str:
        """Add a node; give the name of the output that is used."""
        names = [f"value_{len(self.nodes)}_{place}" if place == used else "" for place in range(outputs)]
        self.nodes.append(self._onnx.helper.make_node(operator, list(inputs), names, **settings))
        return names[used]

    def scaled(self, values: str, scaling: Scaling, chosen: list[int]) -> str:
        """Choose features along the last axis and scale them."""
        values = self.add("Gather", values, self.constant(np.array(chosen, np.int64)), axis=-1)
        values = self.add("Sub", values, self.constant(np.array(scaling.shift, np.float32)[chosen]))
        return self.add("Mul", values, self.constant(np.array(scaling.factor, np.float32)[chosen]))


def onnx_model(model: Any, record: ModelRecord) -> Any:
    """Translate a network.

    Parameters
    ----------
    model : keras.Model
        As training saved it.
    record : ModelRecord
        What ``training.json`` holds.

    Returns
    -------
    onnx.ModelProto
        Inputs, those that the network takes: ``high_level``, float32 (n, 14 or more), physical; ``particles``, float32
        (n, longest, 19), physical (in the published convention: as `features.sequences` gives them), the particles of
        an event in sequence order, with anything behind them; ``lengths``, int32 (n,), how many there are. Output
        ``scores``, float32 (n, n_classes).

    Raises
    ------
    ConfigError
        The network has a layer that cannot be translated.
    MissingDependency
        The package onnx is not installed.
    """
    onnx = _package()
    graph = _Graph(onnx)
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    inputs, values = [], {}
    scaling, takes = record.scaling, record.inputs
    if "particles" in takes:
        width = len(PARTICLE)
        scaler = scaling.particles or Scaling(shift=(0.0,) * width, factor=(1.0,) * width)
        inputs.append(helper.make_tensor_value_info("particles", real, ["events", "longest", width]))
        inputs.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ["events"]))
        values["particles"] = graph.scaled("particles", scaler, list(takes["particles"]))
    if "high_level" in takes:
        scaler = scaling.high_level
        inputs.append(helper.make_tensor_value_info("high_level", real, ["events", len(scaler.shift)]))
        values["high_level"] = graph.scaled("high_level", scaler, list(takes["high_level"]))
    scores = _translate(model, graph, values)
    graph.nodes.append(helper.make_node("Identity", [scores], ["scores"]))
    output = helper.make_tensor_value_info("scores", real, ["events", len(record.classes)])
    made = helper.make_model(
        helper.make_graph(graph.nodes, f"hepdask_{record.model}", inputs, [output], graph.constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=8,
        producer_name="hepdask",
    )
    helper.set_model_props(made, {"classes": ",".join(record.classes), "training": record.key})
    onnx.checker.check_model(made, full_check=True)
    return made


def _package() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise MissingDependency("ONNX needs the package onnx: pip install 'hepdask[onnx]'") from None
    return onnx


def _translate(model: Any, graph: _Graph, values: Mapping[str, str]) -> str:
    """Add the layers in the order in which data flows; give the name of the scores."""
    known: dict[int, str] = {}
    result = ""
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            known[id(layer.output)] = values[layer.name]
            continue
        if kind not in _LAYERS:
            raise ConfigError(
                f"{model.name}: its layer {layer.name} ({kind}) cannot be written as ONNX; use --format savedmodel"
            )
        given = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
        # Keras hands masks on as further inputs; here ``lengths`` says what is real
        names = [known[id(tensor)] for tensor in given if tensor.dtype != "bool"]
        result = _LAYERS[kind](graph, layer, names)
        known[id(layer.output)] = result
    return known[id(model.output)]


def _same(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    """Dropout does nothing after training; masking is what ``lengths`` says."""
    return inputs[0]


def _concatenate(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    return graph.add("Concat", *inputs, axis=layer.axis)


def _dense(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    kernel, bias = (np.asarray(weight) for weight in layer.get_weights())
    result = graph.add("Gemm", inputs[0], graph.constant(kernel), graph.constant(bias))
    activation = layer.activation.__name__
    if activation == "softmax":
        return graph.add("Softmax", result, axis=-1)
    if activation == "linear":
        return result
    if activation not in _ACTIVATIONS:
        raise ConfigError(
            f"{layer.name}: its activation {activation} cannot be written as ONNX; use --format savedmodel"
        )
    return graph.add(_ACTIVATIONS[activation], result)


def _gru(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    """Both order the gates update, reset, candidate."""
    kernel, recurrent, bias = layer.get_weights()
    return _recurrent(
        graph, "GRU", inputs[0], kernel.T, recurrent.T, np.concatenate(bias), layer.units,
        linear_before_reset=1,
    )  # fmt: skip


def _lstm(graph: _Graph, layer: Any, inputs: list[str]) -> str:
    """Keras orders the gates input, forget, cell, output; ONNX input, output, forget, cell."""
    kernel, recurrent, bias = layer.get_weights()
    gates = np.arange(4 * layer.units).reshape(4, -1)[[0, 3, 1, 2]].reshape(-1)
    both = np.concatenate([bias[gates], np.zeros_like(bias)])  # Keras has no bias of the state
    return _recurrent(graph, "LSTM", inputs[0], kernel.T[gates], recurrent.T[gates], both, layer.units)


def _recurrent(
    graph: _Graph,
    operator: str,
    values: str,
    kernel: NDArray,
    recurrent: NDArray,
    bias: NDArray,
    units: int,
    **settings: Any,
) -> str:
    """Run over the particles of each event; give the last state, (n, units)."""
    steps = graph.add("Transpose", values, perm=[1, 0, 2])
    weights = [graph.constant(array[np.newaxis]) for array in (kernel, recurrent, bias)]
    state = graph.add(operator, steps, *weights, "lengths", outputs=2, used=1, hidden_size=units, **settings)
    return graph.add("Squeeze", state, graph.constant(np.array([0], np.int64)))


_LAYERS: dict[str, Callable[[_Graph, Any, list[str]], str]] = {
    "Masking": _same,
    "Dropout": _same,
    "Concatenate": _concatenate,
    "Dense": _dense,
    "GRU": _gru,
    "LSTM": _lstm,
}
