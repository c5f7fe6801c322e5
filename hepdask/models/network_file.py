"""A network from a ``.keras`` file, which may come from anybody: nothing but layers of this project is deserialised."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import InputError

if TYPE_CHECKING:
    import keras

_CONTENT = {"metadata.json", "config.json", "model.weights.h5"}

#: What the networks of this project are made of, by module and class, as Keras writes it.
_KNOWN = {
    **dict.fromkeys(
        ("Concatenate", "Dense", "Dropout", "GRU", "InputLayer", "LSTM", "LayerNormalization", "Masking",
         "MultiHeadAttention"), "keras.layers",
    ),
    **dict.fromkeys(("GlorotUniform", "Ones", "Orthogonal", "Zeros"), "keras.initializers"),
    **dict.fromkeys(
        ("Add", "Any", "ExpandDims", "Maximum", "Multiply", "NotEqual", "Sum", "TrueDivide"),
        "keras.src.ops.numpy",
    ),
    "Cast": "keras.src.ops.core",
    "DTypePolicy": "keras",
    "Functional": "keras.src.models.functional",
    "__keras_tensor__": None,
}  # fmt: skip


def load_network(content: bytes, where: str | Path) -> keras.Model:
    """Load a network.

    Parameters
    ----------
    content : bytes
        Of the ``.keras`` file.
    where : str or Path
        The file, for messages.

    Raises
    ------
    InputError
        It is no such file, or holds something that is not of this project: a Lambda, an object of some package.
    """
    import keras

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if len(names) != len(_CONTENT) or set(names) != _CONTENT:
                raise InputError(f"{where}: not a network as Keras saves it: it holds {', '.join(names[:9])}")
            document = json.loads(archive.read("config.json"))
            weights = archive.read("model.weights.h5")
        for found in _objects(document):
            module, name = found.get("module"), found["class_name"]
            if not isinstance(name, str) or name not in _KNOWN or _KNOWN[name] != module:
                raise InputError(
                    f"{where}: holds {name} of {module}, which no network of hepdask has; such a file could run code, "
                    "and is not loaded"
                )
        _refuse_links(weights, where)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.keras"
            file.write_bytes(content)
            return keras.models.load_model(file, compile=False, safe_mode=True)
    except InputError:
        raise
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{where}: cannot be read as a network ({type(error).__name__}: {words}); train it again"
        ) from None


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """Give all objects that Keras would make of a document."""
    if isinstance(document, dict):
        if "class_name" in document:
            yield document
        for value in document.values():
            yield from _objects(value)
    elif isinstance(document, list):
        for value in document:
            yield from _objects(value)


def _refuse_links(content: bytes, where: str | Path) -> None:
    """Refuse weights that lie in other files: whoever loads a model does not open what somebody else names."""
    import h5py

    def look(group: Any) -> None:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{where}: its weights lead to other files; such a file is not loaded")
            found = group[name]
            if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
                raise InputError(f"{where}: its weights lead to other files; such a file is not loaded")
            if isinstance(found, h5py.Group):
                look(found)

    with h5py.File(io.BytesIO(content)) as file:
        look(file)
