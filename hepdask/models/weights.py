"""Weights from files that Keras wrote, also of a model that was built elsewhere from the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hepdask.errors import InputError

if TYPE_CHECKING:
    import keras


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Give a model the weights of a file.

    Layers are matched by the shapes of their weights, in order: names and the order of the branches do not matter.

    Parameters
    ----------
    model : keras.Model
        From `build`.
    path : str or Path
        A ``.keras`` or ``.h5`` file, of a whole model or (``.h5``) of weights alone.

    Raises
    ------
    InputError
        The file cannot be read, or holds other layers than the model.
    """
    path = Path(path)
    found = _of_keras(path) if path.suffix == ".keras" else _of_hdf5(path)
    layers = [layer for layer in model.layers if layer.weights]
    for layer in layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        place = next((i for i, arrays in enumerate(found) if [a.shape for a in arrays] == shapes), None)
        if place is None:
            raise InputError(f"{path}: holds no weights of shapes {shapes} for the layer {layer.name}")
        layer.set_weights(found.pop(place))
    if found:
        shapes = [array.shape for array in found[0]]
        raise InputError(
            f"{path}: holds a layer with weights of shapes {shapes}, which {model.name} does not have"
        )


def _of_keras(path: Path) -> list[list[NDArray]]:
    from hepdask.models.network_file import load_network

    try:
        stored = load_network(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a Keras model: {error}") from None
    return [layer.get_weights() for layer in stored.layers if layer.weights]


def _of_hdf5(path: Path) -> list[list[NDArray]]:
    """Read the arrays alone: what else is in old files, today's Keras may refuse."""
    import h5py

    try:
        with h5py.File(path) as file:
            root = file.get("model_weights", file)
            layers = [root[_text(name)] for name in root.attrs["layer_names"]]
            return [
                [np.array(layer[_text(name)]) for name in layer.attrs["weight_names"]]
                for layer in layers
                if len(layer.attrs["weight_names"])
            ]
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as weights of a Keras model: {error}") from None


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
