"""What one rank does: train a model on its share of the events, or score events with one.

Runs in a process of its own, started by `hepdask.distributed`; imports TensorFlow only there.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hepdask import logs, models
from hepdask.batches.batch import Batch, Batches
from hepdask.batches.reading import Reading
from hepdask.config import Config
from hepdask.distributed import Checkpoint
from hepdask.engines.choice import choose_engine
from hepdask.engines.engine import Particles, Result
from hepdask.errors import TrainingError
from hepdask.kernels.optimizer_rules import OptimizerRule
from hepdask.models.record import ModelRecord
from hepdask.store import Store, open_store
from hepdask.training.messages import EpochDone, Message, Progress, RankRate, Started, line_of

logger = logging.getLogger(__name__)

_PROGRESS_EVERY = 0.5

#: Seconds between two lines about scoring, less than any bound of silence that makes sense.
_SCORING_EVERY = 60.0

#: Events of a batch that is only watched.
_WATCHED = 1024

#: Steps from which on it pays to compile them first.
_LONG = 5000

#: Memory for events while they are scored.
_SCORING_BYTES = 2.0**31

#: TensorFlow reports which fast paths this processor lacks as errors; real errors are exceptions.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3"}

#: Milliseconds after which Horovod looks for work on ranks that hardly give it any: a compromise between what the
#: looking costs (docs/benchmarks.md) and what the few comparisons of an epoch wait.
_CYCLE_MS = 20


def environment(name: str, config: Config) -> dict[str, str]:
    """Return the environment of ranks that train a model.

    Where the compiled kernels train, Horovod has nothing to do in a step as long as all ranks are on one host.
    """
    cell = getattr(models.settings(name, config.models), "cell", None)
    if not config.training.kernel or cell == "transformer":
        return ENVIRONMENT
    return {**ENVIRONMENT, "HEPDASK_CYCLE_TIME_ON_ONE_HOST": str(_CYCLE_MS)}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model as rank 0 returns it.

    Attributes
    ----------
    keras_file : bytes
        Contents of the ``.keras`` file.
    history : list of dict
        One entry per epoch: epoch, loss, accuracy, val_loss, val_accuracy, learning_rate, events_per_second, seconds.
    parameters : int
        Trainable numbers.
    cpu_s : float
        CPU time of all ranks [s].
    engine_name : str
        How the steps were computed, in words.
    """

    keras_file: bytes
    history: list[dict[str, float]]
    parameters: int
    cpu_s: float
    engine_name: str


def train_rank(
    name: str,
    config: Config,
    store_path: Path,
    log_folder: Path | None = None,
    checkpoint: Checkpoint | None = None,
    fold: tuple[int, int] | None = None,
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
    log_folder : Path, optional
        Rank 0 writes TensorBoard's files there.
    checkpoint : Checkpoint, optional
        Written after each epoch; training goes on from what is in it.
    fold : (int, int), optional
        Watch this one of so many folds of the training split, and learn from the others.

    Returns
    -------
    TrainedModel or None
        From rank 0; None from the others.

    Raises
    ------
    TrainingError
        A feature is not finite, or the loss is no longer a number: the message names the events. Or the precision
        needs a GPU and there is none.
    """
    import keras

    from hepdask.distributed import collective
    from hepdask.distributed.keras import (
        DistributedOptimizer,
        assert_synchronised,
        broadcast_variables,
        get_values,
        set_values,
    )
    from hepdask.engines.optimizers import keras_optimizer

    logs.show_in_rank()
    rank, size = collective.rank(), collective.size()
    store = open_store(store_path, fold)
    settings, training = models.settings(name, config.models), config.training
    inputs = models.inputs(name, config.models, store.features["hlf"])

    keras.utils.set_random_seed(training.seed)
    mixed = training.precision != "float32" and "particles" in inputs
    keras.config.set_dtype_policy(_policy(training.precision) if mixed else "float32")
    model = models.build(name, config.models, inputs, len(store.classes))
    keras.config.set_dtype_policy("float32")  # in which the model is saved
    plain = keras_optimizer(OptimizerRule.of(settings), settings.learning_rate)
    optimizer = DistributedOptimizer(keras.optimizers.LossScaleOptimizer(plain) if mixed else plain, op="sum")
    optimizer.build(model.trainable_variables)
    state = [*model.weights, *optimizer.variables]
    broadcast_variables(state)
    history: list[dict[str, float]] = []
    best: list[NDArray] = []
    if checkpoint and (saved := checkpoint.load()):
        try:
            history, best = saved.shared["history"], saved.shared["best"]
            set_values(state, saved.shared["state"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TrainingError(
                f"{checkpoint.folder}: it is not a checkpoint of this network ({error}); remove the folder"
            ) from None
    assert_synchronised(state)

    particles = "particles" in inputs
    class_weights = np.array([training.class_weights.get(label, 1.0) for label in store.classes])
    memory = training.memory_gib * 2**30 * (1.0 if particles else np.inf)

    def batches(sample: Literal["fit", "validation"], batch_size: int) -> Batches:
        reading = Reading(store, sample, memory, particles)
        return Batches(
            reading, store.high_level_scaler, inputs.get("high_level", []), batch_size, training.window,
            class_weights if training.class_weights and sample == "fit" else None, rank, size,
        )  # fmt: skip

    fit, validation = batches("fit", settings.batch_size), batches("validation", _WATCHED)
    if training.early_stopping and not len(validation.reading):
        raise TrainingError(
            "training.early_stopping needs events to watch, and there are none; raise split.validation_fraction"
        )
    engine, engine_name = choose_engine(
        model, optimizer, _particles(inputs, store), training.kernel, training.cores_per_rank,
        long=len(fit) * settings.epochs > _LONG,
    )  # fmt: skip
    events, done = len(fit.reading), len(fit.reading) * len(history)
    progress = _Counter(done) if rank == 0 else None
    if progress:
        _tell(Started(events, events * settings.epochs, done, engine_name))

    def total(results: Iterator[Result], events: int, report: _Counter | None) -> tuple[float, float]:
        """Mean loss and accuracy over all events of all ranks."""
        sums = np.zeros(2)
        for result in results:
            if not math.isfinite(result.loss):
                raise TrainingError(_not_a_number(name, result, store))
            sums += (result.loss, result.n_correct)
            if report:
                report.advance(result.size)
        return _means(collective.allreduce(sums, "sum", "metrics"), events)

    with _TensorBoard(log_folder if rank == 0 else None) as board:
        patience = training.early_stopping
        for epoch in range(len(history), settings.epochs):
            if patience and _waited(history) >= patience:
                break
            begin = time.monotonic()
            rate = settings.rate(epoch + 1) * (size if training.rate_per_rank else 1)
            optimizer.learning_rate.assign(rate)
            _reseed(model, training.seed, epoch, rank)
            loss, accuracy = total(engine.train(fit, training.seed, epoch), events, progress)
            seconds = time.monotonic() - begin
            assert_synchronised(state)
            watched: tuple[float | None, float | None] = (None, None)
            if len(validation.reading):
                watched = total(engine.validate(validation), len(validation.reading), None)
            summary = EpochDone(
                epochs=settings.epochs, epoch=epoch + 1, loss=loss, accuracy=accuracy, val_loss=watched[0],
                val_accuracy=watched[1], learning_rate=rate, events_per_second=events / seconds, seconds=seconds,
            )  # fmt: skip
            history.append(summary.row())
            board.write(summary.row())
            if progress:
                progress.tell()
                _tell(summary)
            _tell(RankRate(rank, summary.events_per_second / size))
            if patience and _waited(history) == 0:
                best = model.get_weights()
            if checkpoint:
                checkpoint.save({"history": history, "state": get_values(state), "best": best})
    if best:
        model.set_weights(best)

    cpu = float(np.asarray(collective.allreduce(np.array([time.process_time()]), "sum", "cpu"))[0])
    if rank != 0:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        # in single precision, and because an engine may have used the model's layers in another one, after which
        # Keras cannot save it
        saved = models.build(name, config.models, inputs, len(store.classes))
        saved.set_weights(model.get_weights())
        saved.save(file)
        return TrainedModel(file.read_bytes(), history, model.count_params(), cpu, engine_name)


@dataclass(frozen=True)
class RankScores:
    """What one rank says of a trained model.

    Attributes
    ----------
    test, fit : float32 (n_share, n_classes)
        Scores of the events ``rank``, ``rank + size``, … of the test split, and of those that were trained on.
    importances : dict of float
        Of the features that are this rank's share, see `importance.importances`.
    cpu_s : float
        CPU time [s].
    """

    test: NDArray[np.float32]
    fit: NDArray[np.float32]
    importances: dict[str, float]
    cpu_s: float


def score_rank(keras_file: bytes, record: ModelRecord, store_path: Path) -> RankScores:
    """Score this rank's share of the events, and shuffle its share of the features.

    Parameters
    ----------
    keras_file : bytes
        Contents of the ``.keras`` file.
    record : ModelRecord
        What ``training.json`` holds.
    store_path : Path
        The store.

    Returns
    -------
    RankScores
    """
    from hepdask.distributed import collective
    from hepdask.inference import importance
    from hepdask.inference.network_scorer import NetworkScorer

    logs.show_in_rank()
    rank, size = collective.rank(), collective.size()
    store = open_store(store_path)
    network = NetworkScorer(keras_file, record, record.file)
    inputs, high_level = record.inputs, store.features["hlf"]

    def scores(sample: Literal["test", "fit"]) -> NDArray[np.float32]:
        batches = Batches(
            Reading(store, sample, _SCORING_BYTES, "particles" in inputs),
            network.high_level_scaler, network.high_level, 512 * size, rank=rank, size=size,
        )  # fmt: skip
        return network.of_batches(_signs_of_life(batches.in_order(), sample))

    mine = importance.features(inputs, high_level, list(store.particle_dtypes))[rank::size]
    lost = importance.importances(network, importance.sample(store), mine, high_level, store.classes)
    return RankScores(scores("test"), scores("fit"), lost, time.process_time())


def _signs_of_life(batches: Iterable[Batch], sample: str) -> Iterator[Batch]:
    """Say now and then how far scoring is: a rank that is silent for `training.silence_timeout` counts as dead."""
    told, done = time.monotonic(), 0
    for batch in batches:
        yield batch
        done += batch.size
        if time.monotonic() > told + _SCORING_EVERY:
            told = time.monotonic()
            logger.info(f"scored {done:,} events ({sample})")


def _policy(precision: str) -> str:
    """Refuse less than single precision where no GPU computes with it."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        raise TrainingError(
            f"training.precision is {precision}, and TensorFlow sees no GPU: on a CPU that is slower and less precise. "
            "Set it to float32, or train on a cluster with GPUs (hepdask cluster check gpu says what is missing)"
        )
    return precision


def _particles(inputs: dict[str, list[int]], store: Store) -> Particles | None:
    if "particles" not in inputs:
        return None
    return Particles(store.particle_scaler, inputs["particles"], store.max_particles)


def _reseed(model: Any, seed: int, epoch: int, rank: int) -> None:
    """Let the dropout masks of an epoch follow from seed, epoch and rank, so that training can be resumed."""
    import keras

    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout) and layer.rate > 0]
    for place, layer in enumerate(layers):
        state = np.random.SeedSequence((seed, epoch, rank, place)).generate_state(2)
        layer.seed_generator.state.assign(state)


def _waited(history: list[dict[str, float]]) -> int:
    """Count the epochs since the best val_loss; before the first, none."""
    if not history:
        return 0
    losses = [row["val_loss"] for row in history]
    return len(losses) - 1 - int(np.argmin(losses))


def _means(sums: Any, events: int) -> tuple[float, float]:
    loss, accuracy = (float(value) for value in np.asarray(sums) / max(events, 1))
    return loss, accuracy


def _not_a_number(name: str, result: Result, store: Store) -> str:
    events, source = result.events, result.source
    shown = [f"{store.parts[source.part[index]]['file']} entry {source.entry[index]}" for index in events[:5]]
    more = f" and {len(events) - 5} more" if len(events) > 5 else ""
    return (
        f"{name}: the loss became {result.loss} on the batch of {'; '.join(shown)}{more}. "
        f"Lower models.{name}.learning_rate, or check these events."
    )


class _TensorBoard:
    """Writes the epochs' figures where TensorBoard finds them; nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        import tensorflow as tf

        self._tf = tf
        self._writer = tf.summary.create_file_writer(str(folder)) if folder else None

    def __enter__(self) -> _TensorBoard:
        return self

    def write(self, row: dict[str, float]) -> None:
        """Write one epoch, and make it visible."""
        if self._writer is None:
            return
        with self._writer.as_default(step=int(row["epoch"])):
            for key, value in row.items():
                if key != "epoch":
                    self._tf.summary.scalar(key, value)
        self._writer.flush()

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()


class _Counter:
    """Tells the driver now and then how many events have been learned from."""

    def __init__(self, done: int) -> None:
        self._done, self._told = done, 0.0

    def advance(self, events: int) -> None:
        self._done += events
        if time.monotonic() - self._told > _PROGRESS_EVERY:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        _tell(Progress(self._done))


def _tell(message: Message) -> None:
    print(line_of(message), flush=True)
