"""What one rank does: train a model on its share of the events, or score events with one.

Runs in a process of its own, started by `hepdask.distributed`; imports TensorFlow only there.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask import models
from hepdask.batches import Batch, Batches
from hepdask.config import Config
from hepdask.distributed import Checkpoint
from hepdask.errors import TrainingError
from hepdask.scaling import Scaler
from hepdask.store import Events, Store, open_store

_PROGRESS_EVERY = 0.5

#: TensorFlow reports which fast paths this processor lacks as errors; real errors are exceptions.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3"}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model as rank 0 gives it back.

    Attributes
    ----------
    keras_file : bytes
        Contents of the ``.keras`` file.
    history : list of dict
        One entry an epoch: epoch, loss, accuracy, val_loss, val_accuracy, events_per_second, seconds.
    parameters : int
        Trainable numbers.
    cpu_s : float
        CPU time of all ranks [s].
    """

    keras_file: bytes
    history: list[dict[str, float]]
    parameters: int
    cpu_s: float


def train_rank(
    name: str, config: Config, store_path: Path, checkpoint: Checkpoint | None = None
) -> TrainedModel | None:
    """Train a model together with the other ranks.

    Parameters
    ----------
    name : str
        Which model.
    config : Config
        Uses `models` and `training`.
    store_path : Path
        The store, readable from every rank.
    checkpoint : Checkpoint, optional
        Written after each epoch; training goes on from what is in it.

    Returns
    -------
    TrainedModel or None
        From rank 0; None from the others.

    Raises
    ------
    TrainingError
        The loss is no longer a number; the message names the events of the batch.
    """
    import keras
    import tensorflow as tf

    from hepdask.distributed import collective
    from hepdask.distributed.keras import (
        DistributedOptimizer,
        assert_synchronised,
        broadcast_variables,
        get_values,
        set_values,
    )

    rank, size = collective.rank(), collective.size()
    store = open_store(store_path)
    settings = models.settings(name, config.models)
    inputs = models.inputs(name, config.models, store.features["hlf"])
    fit = _batches(inputs, store, store.events("fit"), settings.batch_size, rank, size)
    validation = _batches(inputs, store, store.events("validation"), 1024, rank, size)

    # every rank draws its own dropout masks; the initial weights are rank 0's
    keras.utils.set_random_seed(config.training.seed + rank)
    model = models.build(name, config.models, inputs, len(store.classes))
    optimizer = DistributedOptimizer(keras.optimizers.Adam(settings.learning_rate), op="sum")
    optimizer.build(model.trainable_variables)
    state = [*model.weights, *optimizer.variables]
    masks = [variable for variable in model.variables if not any(variable is w for w in model.weights)]
    broadcast_variables(state)
    history: list[dict[str, float]] = []
    if checkpoint and (saved := checkpoint.load()):
        history = saved.shared["history"]
        set_values(state, saved.shared["state"])
        if len(saved.per_rank) == size:
            set_values(masks, saved.per_rank[rank])
    assert_synchronised(state)

    def losses(scores: Any, label: Any) -> Any:
        return keras.ops.sparse_categorical_crossentropy(label, scores)

    def hits(scores: Any, label: Any) -> Any:
        return tf.cast(tf.equal(tf.argmax(scores, axis=1), label), tf.float32)

    @tf.function(reduce_retracing=True, autograph=False)
    def step(inputs: Any, label: Any, weight: Any) -> Any:
        with tf.GradientTape() as tape:
            scores = model(inputs, training=True)
            loss = tf.reduce_sum(weight * losses(scores, label))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tf.reduce_sum(weight * hits(scores, label))

    @tf.function(reduce_retracing=True, autograph=False)
    def watch(inputs: Any, label: Any, weight: Any) -> Any:
        scores = model(inputs, training=False)
        return tf.reduce_sum(weight * losses(scores, label)), tf.reduce_sum(weight * hits(scores, label))

    def total(function: Any, batches: Batches, stream: Any, report: _Progress | None) -> tuple[float, float]:
        """Mean loss and accuracy over all events of all ranks."""
        sums = np.zeros(2)
        for batch in stream:
            loss, accuracy = (float(value) for value in function(*_tensors(tf, batch)))
            if not math.isfinite(loss):
                raise TrainingError(_not_a_number(name, loss, batch, batches.events, store))
            # weights are one over the size of the global batch
            events = round(1 / batch.weight[0]) if batch.weight[0] else 0
            sums += (loss * events, accuracy * events)
            if report:
                report.advance(events)
        return _means(collective.allreduce(sums, "sum", "metrics"), len(batches.events))

    progress = None
    if rank == 0:
        progress = _Progress(name, len(fit.events) * settings.epochs, len(fit.events) * len(history))
    for epoch in range(len(history), settings.epochs):
        begin = time.monotonic()
        loss, accuracy = total(step, fit, fit.shuffled(config.training.seed, epoch), progress)
        seconds = time.monotonic() - begin
        assert_synchronised(state)
        row = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy}
        if len(validation.events):
            row["val_loss"], row["val_accuracy"] = total(watch, validation, validation.in_order(), None)
        row |= {"events_per_second": len(fit.events) / seconds, "seconds": seconds}
        history.append(row)
        if checkpoint:
            checkpoint.save({"history": history, "state": get_values(state)}, get_values(masks))
        if progress:
            progress.epoch(row, settings.epochs)

    cpu = float(np.asarray(collective.allreduce(np.array([time.process_time()]), "sum", "cpu"))[0])
    if rank != 0:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        return TrainedModel(file.read_bytes(), history, model.count_params(), cpu)


def score_rank(
    keras_file: bytes, inputs: dict[str, list[int]], scaling: dict[str, Any], store_path: Path, sample: str
) -> NDArray[np.float32]:
    """Score this rank's share of a sample.

    Parameters
    ----------
    keras_file : bytes
        Contents of the ``.keras`` file.
    inputs : dict of list of int
        The features it takes, as in training.
    scaling : dict
        The scalers that were used in training.
    store_path : Path
        The store.
    sample : str
        ``"train"`` or ``"test"``.

    Returns
    -------
    float32 (n_share, n_classes)
        Of events ``rank``, ``rank + size``, … of the sample.
    """
    import keras
    import tensorflow as tf

    from hepdask.distributed import collective

    rank, size = collective.rank(), collective.size()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        file.write_bytes(keras_file)
        model = keras.models.load_model(file, compile=False)
    store = open_store(store_path)
    batches = Batches(
        store.events(sample),  # type: ignore[arg-type]
        inputs,
        Scaler.from_json(scaling["high_level"]),
        Scaler.from_json(scaling["particles"]) if scaling["particles"] else None,
        store.max_particles,
        512 * size,
        rank,
        size,
    )

    @tf.function(reduce_retracing=True, autograph=False)
    def predict(inputs: Any) -> Any:
        return model(inputs, training=False)

    scores = [predict(_tensors(tf, batch)[0]).numpy()[batch.weight > 0] for batch in batches.in_order()]
    return np.concatenate([*scores, np.empty((0, model.output_shape[-1]), np.float32)])


def _means(sums: Any, events: int) -> tuple[float, float]:
    loss, accuracy = (float(value) for value in np.asarray(sums) / max(events, 1))
    return loss, accuracy


def _batches(
    inputs: dict[str, list[int]], store: Store, events: Events, batch_size: int, rank: int, size: int
) -> Batches:
    return Batches(
        events,
        inputs,
        store.high_level_scaler,
        store.particle_scaler,
        store.max_particles,
        batch_size,
        rank,
        size,
    )


def _tensors(tf: Any, batch: Batch) -> tuple[dict[str, Any], Any, Any]:
    inputs = {name: tf.constant(array) for name, array in batch.inputs.items()}
    return inputs, tf.constant(batch.label), tf.constant(batch.weight)


def _not_a_number(name: str, loss: float, batch: Batch, events: Events, store: Store) -> str:
    shown = [
        f"{store.parts[events.part[index]]['file']} entry {events.entry[index]}" for index in batch.events[:5]
    ]
    more = f" and {len(batch.events) - 5} more" if len(batch.events) > 5 else ""
    return (
        f"{name}: the loss became {loss} on the batch of {'; '.join(shown)}{more}. "
        f"Lower models.{name}.learning_rate, or look at these events."
    )


class _Progress:
    """Tells the driver how far training is, as JSON lines on standard output."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self._name, self._total, self._done, self._last = name, total, done, 0.0

    def advance(self, events: int) -> None:
        self._done += events
        if time.monotonic() - self._last > _PROGRESS_EVERY:
            self._last = time.monotonic()
            self._tell({"model": self._name, "done": self._done, "total": self._total})

    def epoch(self, row: dict[str, float], epochs: int) -> None:
        self._tell({"model": self._name, "done": self._done, "total": self._total, "epochs": epochs, **row})

    def _tell(self, message: dict[str, Any]) -> None:
        print(json.dumps({"hepdask": message}), flush=True)
