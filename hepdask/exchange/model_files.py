"""A trained network for those who use it elsewhere: as ONNX or TensorFlow SavedModel, checked against Keras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.scaling import Scaler
from hepdask.config.feature_names import PARTICLE
from hepdask.errors import ConfigError, HepdaskError
from hepdask.exchange.onnx import onnx_model
from hepdask.extras import require
from hepdask.files.atomic import renamed_to, write_bytes
from hepdask.models.network_file import load_network
from hepdask.models.record import ModelRecord, read_model

#: Largest difference of a score that may come from the order of sums in float32.
_TOLERANCE = 1e-5

_EVENTS = 64
_LONGEST = 40

Inputs = dict[str, NDArray]


@dataclass(frozen=True)
class ExportedModel:
    """What was written.

    Attributes
    ----------
    path : Path
        The ONNX file, or the folder of the SavedModel.
    max_difference : float
        Largest difference between its scores and those of Keras, over the events of the check.
    """

    path: Path
    max_difference: float


def write_network(folder: Path, record: ModelRecord, format: str, out: Path) -> ExportedModel:
    """Write a trained network, and make sure that it gives the scores that Keras gives.

    Parameters
    ----------
    folder : Path
        Of the model.
    record : ModelRecord
        Its ``training.json``.
    format : {"onnx", "savedmodel"}
        ONNX takes physical features and scales them itself (see `onnx_model`); a SavedModel takes what the network
        takes, chosen and scaled features, with rows of zeros behind the particles.
    out : Path
        File or folder to write.

    Returns
    -------
    ExportedModel

    Raises
    ------
    ConfigError
        `out` is there already, the model is no network, or has a layer that cannot be written in this format.
    MissingDependency
        TensorFlow, or onnx and onnxruntime for that format, is not installed.
    HepdaskError
        The scores differ from those of Keras. Nothing is left behind then.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already; remove it or give another name")
    file = folder / record.file
    if file.suffix != ".keras":
        raise ConfigError(f"{file}: is not a network; only networks can be written as {format}")
    require("train", str(file))
    if format == "onnx":
        require("onnx", "--format onnx")
    model = load_network(read_model(folder, record), file)
    physical, lengths, ready = _events(record)
    expected = np.asarray(model(ready, training=False))
    if format == "onnx":
        content = onnx_model(model, record).SerializeToString()
        difference = _difference(_run_onnx(content, physical, lengths), expected, out)
        write_bytes(out, content)
    else:
        with renamed_to(out) as temporary:
            model.export(temporary, verbose=False)
            difference = _difference(_run_saved(temporary, ready), expected, out)
    return ExportedModel(out, difference)


def _events(record: ModelRecord) -> tuple[Inputs, NDArray[np.int32], Inputs]:
    """Draw events as physical features, and as the network takes them: scaled, with zeros behind the particles."""
    rng = np.random.default_rng(1)
    takes, scaling = record.inputs, record.scaling
    physical, ready = {}, {}
    lengths = rng.integers(1, _LONGEST + 1, _EVENTS).astype(np.int32)
    lengths[:2] = 1, _LONGEST
    if "high_level" in takes:
        scaler = scaling.high_level.scaler()
        values = _physical(rng.uniform(0, 1, (_EVENTS, len(scaler.shift))), scaler)
        physical["high_level"] = values
        ready["high_level"] = scaler(values)[:, list(takes["high_level"])]
    if "particles" in takes:
        width = len(PARTICLE)
        found = scaling.particles.scaler() if scaling.particles else None
        scaler = found or Scaler(np.zeros(width, np.float32), np.ones(width, np.float32))
        values = _physical(rng.normal(0, 1, (_EVENTS, _LONGEST, width)), scaler)
        real = np.arange(_LONGEST) < lengths[:, np.newaxis]
        physical["particles"] = values
        ready["particles"] = np.where(real[..., np.newaxis], scaler(values), np.float32(0))[
            ..., list(takes["particles"])
        ]
    return physical, lengths, ready


def _physical(scaled: NDArray, scaler: Scaler) -> NDArray[np.float32]:
    width = np.divide(1.0, scaler.factor, out=np.zeros_like(scaler.factor), where=scaler.factor != 0)
    return (scaled * width + scaler.shift).astype(np.float32)


def _run_onnx(content: bytes, physical: Inputs, lengths: NDArray[np.int32]) -> NDArray:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = {**physical, "lengths": lengths} if "particles" in physical else physical
    return session.run(["scores"], given)[0]


def _run_saved(folder: Path, ready: Inputs) -> NDArray:
    import tensorflow as tf

    loaded: Any = tf.saved_model.load(str(folder))
    serve: Callable[[Any], Any] = loaded.serve
    return np.asarray(serve({name: tf.constant(values) for name, values in ready.items()}))


def _difference(found: NDArray, expected: NDArray, out: Path) -> float:
    difference = float(np.abs(found - expected).max())
    if not difference <= _TOLERANCE:
        raise HepdaskError(
            f"{out}: not written: its scores differ from those of Keras by up to {difference:.2g}, more than "
            f"{_TOLERANCE:g}"
        )
    return difference
